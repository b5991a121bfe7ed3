"""One trial restored alone, then the rest: it ends as one `Tuner.restore` of the whole experiment."""

import shutil

from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.trial import UNFINISHED
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.compared import Case, ask_ray, compare

CASE = Case("killed, one first", "killed")
SETTINGS = {"flags": ResumeFlags(), "env": {"TUNE_TEST_HEALED": "1"}}


def test_the_rest_can_be_restored_by_us_and_by_ray(hosts, failed_experiments, tmp_path):
    original, trainable = failed_experiments[CASE.kind], TRAINABLES[CASE.kind]
    theirs = ask_ray(hosts, CASE, original, tmp_path)
    experiment = shutil.copytree(original, tmp_path / "killed")

    before = hosts.ray.call("describe", str(experiment))["trials"]
    unfinished = [trial["trial_id"] for trial in before if trial["status"] in UNFINISHED]
    assert len(unfinished) > 1
    summary = hosts.restore_by_us(
        str(experiment), trainable, trials=tuple(unfinished[:1]), **SETTINGS
    )
    assert summary.is_done
    after = {t["trial_id"]: t for t in hosts.ray.call("describe", str(experiment))["trials"]}
    assert after.pop(unfinished[0])["status"] == "TERMINATED"
    assert after == {t["trial_id"]: t for t in before if t["trial_id"] != unfinished[0]}
    (report,) = scan(open_store(str(experiment)))
    assert report.health is Health.INTERRUPTED

    by_ray = ask_ray(hosts, CASE, experiment, tmp_path / "rest")
    rest = hosts.restore_by_us(str(experiment), trainable, **SETTINGS)
    assert rest.is_done
    compare(hosts.ray.call("describe", str(experiment)), theirs, CASE)
    compare(by_ray, theirs, CASE)
