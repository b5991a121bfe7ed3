"""Runners resume real failed trials of every kind, as Ray would have."""

import hashlib
from pathlib import Path

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import EXIT_FINISHED
from airflow_tune_restore.restore.commit import commit_restore
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


def test_rows_past_the_checkpoint_are_trimmed_by_choice(hosts, copied):
    restoring = Restoring(copied("sparse"), "sparse", hosts=hosts, trim_results=True)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    backup = layout.results_backup_key(RESTORE_ID, restoring.trial.trial_id)
    assert len(restoring.store.get(backup).splitlines()) == 3


def test_without_tuner_pkl_the_state_alone_is_enough(hosts, copied):
    directory = copied("errored")
    (directory / "tuner.pkl").unlink()
    restoring = Restoring(directory, "errored", hosts=hosts)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == EVERY
    assert not (directory / "tuner.pkl").exists()
