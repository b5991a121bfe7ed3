"""Runners resume real failed trials of every kind, as Ray would have."""

import hashlib
import json
from pathlib import Path

import pytest

from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.request import EXIT_FINISHED
from tests.support.experiments.failed import save_rarely
from tests.support.ray.real_restore import RESTORE_ID, Restoring

EVERY = [1, 2, 3, 4, 5, 6]


def digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and layout.ROOT not in path.parts
    }


def test_errored_trial_goes_on_after_its_checkpoint_and_nothing_else_changes(hosts, copied):
    directory = copied("errored")
    before = digests(directory)
    restoring = Restoring(directory, "errored", hosts=hosts)
    ran = restoring.run()

    assert ran.code == EXIT_FINISHED, ran.output
    assert ran.outcome.result == "finished"
    assert ran.outcome.final_trial_id == restoring.trial.trial_id
    assert (ran.outcome.status, ran.outcome.iteration) == ("TERMINATED", 6)
    assert ran.outcome.metrics["score"] == 12
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    assert [row["started_from"] for row in restoring.results()] == [0, 0, 0, 3, 3, 3]

    assert [line.iteration for line in ran.progress] == [4, 5, 6]
    assert next(iter(ran.progress[0].metrics)) == "score"

    after = digests(directory)
    trial_dir = f"{restoring.trial.trial_dir}/"
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {trial_dir + "result.json", trial_dir + "progress.csv"}
    assert all(name.startswith(trial_dir) for name in after.keys() - before.keys())

    trial, run = restoring.snapshot()
    assert (trial["status"], run["error_filename"]) == ("TERMINATED", None)
    assert trial["relative_logdir"] == restoring.trial.trial_dir

    commit_restore(restoring.store, RESTORE_ID)
    assert _statuses_by_ray(directory) == {"TERMINATED"}


def _statuses_by_ray(directory: Path) -> set[str]:
    from ray.tune import ExperimentAnalysis

    from tests import trainables

    assert trainables
    return {trial.status for trial in ExperimentAnalysis(directory.as_posix()).trials}


def test_callbacks_and_stopper_of_tuner_pkl_work_and_keep_their_state(hosts, copied, tmp_path):
    record = tmp_path / "seen"
    restoring = Restoring(
        copied("extras"), "extras", hosts=hosts, env={"TUNE_TEST_RECORD": str(record)}
    )
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == [1, 2, 3, 4, 5]  # the stopper's five, not six
    assert record.read_text() == "5"  # three before the failure, from callback-states-*.pkl


def test_rays_own_retry_loses_no_row_that_was_not_uploaded_yet(hosts, copied, tmp_path):
    """Ray's loggers fetch result.json again when a trial is retried, over what is not stored yet."""
    directory = copied("retries")
    save_rarely(directory)
    env = {"TUNE_TEST_FAILS_ONCE": str(tmp_path / "failed")}
    restoring = Restoring(directory, "retries", hosts=hosts, fresh_budget=True, env=env)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert (tmp_path / "failed").exists()
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    _, run = restoring.snapshot()
    assert run["num_failures"] == 1


@pytest.mark.parametrize(("trim", "rows"), [(False, [1, 2, 3, 3, 4, 5, 6]), (True, EVERY)])
def test_rows_past_the_checkpoint_are_repeated_as_by_ray_unless_trimmed(hosts, copied, trim, rows):
    restoring = Restoring(copied("sparse"), "sparse", hosts=hosts, trim_results=trim)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == rows
    backup = layout.results_backup_key(RESTORE_ID, restoring.trial.trial_id)
    if trim:
        assert len(restoring.store.get(backup).splitlines()) == 3


@pytest.mark.parametrize("body", [None, b""])
def test_without_tuner_pkl_the_state_alone_is_enough(hosts, copied, body):
    directory = copied("errored")
    if body is None:
        (directory / "tuner.pkl").unlink()
    else:
        (directory / "tuner.pkl").write_bytes(body)
    restoring = Restoring(directory, "errored", hosts=hosts)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == EVERY
    assert not (directory / "tuner.pkl").exists() or not (directory / "tuner.pkl").read_bytes()


def test_a_snapshot_carries_nothing_but_rays_own_row(hosts, copied):
    """The document has Ray's three parts, and the fields of its row that Ray's own file has."""
    directory = copied("with_resources")
    source = json.loads(next(directory.glob("experiment_state-*.json")).read_text())
    restoring = Restoring(directory, "with_resources", hosts=hosts)
    assert restoring.run().code == EXIT_FINISHED
    key = layout.snapshot_key(RESTORE_ID, restoring.trial.trial_id, 1)
    document = json.loads(restoring.store.get(key))
    assert document.keys() == source.keys()
    assert document["runner_data"].keys() == source["runner_data"].keys()
    for ours, theirs in zip(document["trial_data"][0], source["trial_data"][0], strict=True):
        assert json.loads(ours).keys() == json.loads(theirs).keys()
