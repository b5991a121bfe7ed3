"""What Airflow does with a question that nobody answers, and with one that is asked again."""

import pytest

from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow import canary
from tests.support.airflow.asking import (
    APPROVE,
    CODE,
    changed,
    night_on_s3,
    write_state,
)
from tests.support.experiments.sweeps import copy_dag, copy_short_sweep


@pytest.fixture(autouse=True)
def asking(running):
    (running.dags / "asks.py").write_text(CODE)


def test_without_an_answer_and_a_default_it_fails_and_is_not_tried_again(
    running, seaweed, tmp_path
):
    night = night_on_s3(running, seaweed, tmp_path, "asks_in_vain")
    night.begin()
    assert night.finish() == "failed"
    assert night.states["approve"] == ["failed"]
    # Airflow 3.3.2 may lose a first try that resumes before its scheduler knows that it was parked
    assert night.log("approve").count('"Nobody has answered in time. Nothing was started') == 1
    assert changed(night.before, night.look()) == set()


def test_a_page_that_airflow_does_not_show_cannot_be_approved(running, seaweed, tmp_path):
    """Airflow keeps the first page of a task that is cleared: a yes to it would count for another one."""
    night = night_on_s3(running, seaweed, tmp_path)
    night.begin()
    night.wait()
    write_state(seaweed, night, "two")
    night.answer("Approve")
    assert night.finish() == "failed"
    night.running.clear(night.dag_id, night.run, "restore.preview")
    assert night.finish() == "failed"
    assert night.states["approve"] == ["failed"]
    assert "Airflow shows the page of an earlier preview" in night.log("approve")
    path = f"/api/v2/dags/asks/dagRuns/{night.run}/taskInstances/{APPROVE}/-1/hitlDetails"
    assert night.running.call("GET", path)["body"] == night.shown["body"]
    assert changed(night.asked, night.look()) == set()


def test_a_real_night_on_s3_begins_with_a_yes(running, seaweed, canaries, tmp_path):
    copy_dag(running.dags, "nightly_recovery", "nightly_that_asks")
    dag = running.dags / "nightly_that_asks.py"
    line = "        wait=False,\n"
    dag.write_text(dag.read_text().replace(line, f"{line}        require_approval=True,\n"))
    address = seaweed.upload(copy_short_sweep(tmp_path / "killed"), "asked/killed")
    prefix = f"s3://seaweed@{seaweed.bucket}/asked"
    run = running.trigger("nightly_that_asks", {"prefix": prefix, "stale_after": 0})
    shown = running.request("nightly_that_asks", run, APPROVE)
    assert shown["subject"].startswith("Restore 1 trial ")
    assert "RUNNING | 2 → 6 |" in shown["body"]
    running.answer("nightly_that_asks", run, APPROVE, "Approve")
    assert running.finish("nightly_that_asks", run) == "success", running.log_tail()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.env.items():
            patch.setenv(name, value)
        trials = read_base(open_store(address)).trials
    assert {trial.status for trial in trials} == {TrialStatus.TERMINATED}
    assert canary.leaks(canary.files(running.home), canaries.all) == []
    assert canary.leaks(canary.values(running.home / "airflow.db"), canaries.all) == []
