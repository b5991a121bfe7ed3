"""`dags/tune_restore_admin.py`, run by `dag.test()`: of each operation only its own tasks run."""

import os

import pytest

from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.dag_test import run_example
from tests.support.experiments.built import make_experiment, make_row
from tests.support.experiments.sweeps import copy_sweep
from tests.support.records import night

pytestmark = pytest.mark.usefixtures("database")

RESTORE = ["plan", "trial", "commit", "continue_search", "done"]
ALL = {"list_quarantine", "release_trial", "undo_commit", *(f"restore.{name}" for name in RESTORE)}


def run(capfd, operation, **params):
    return run_example("tune_restore_admin", capfd, operation=operation, **params)


def ends(experiment) -> dict[str, tuple[str, int]]:
    trials = read_base(open_store(str(experiment))).trials
    return {trial.trial_id: (trial.status, trial.iteration) for trial in trials}


@pytest.fixture
def quarantined(tmp_path):
    """An experiment whose trial `bad` failed twice at the same place."""
    experiment = make_experiment(tmp_path / "exp", [make_row("bad", status="ERROR", error=True)])
    for restore_id in ("r1", "r2"):
        night(open_store(str(experiment)), restore_id)
    for release in experiment.glob(".tune_restore/lease/*.release.json"):
        os.utime(
            release, (0, 0)
        )  # long ago, so that an operation need not wait until it has rested
    return experiment


def assert_ran(done, *tasks):
    assert done.state == "success", done.log
    assert {name for name, states in done.states.items() if states == ["success"]} == {
        "choose",
        *tasks,
    }
    assert {name for name, states in done.states.items() if states == ["skipped"]} == ALL - {*tasks}


def test_list_and_release(quarantined, tmp_path, capfd):
    done = run(capfd, "list quarantine", experiment=str(tmp_path))
    assert_ran(done, "list_quarantine")
    assert "1 trial in quarantine in 1 experiment" in done.log
    assert "ValueError at project/train.py:7" in done.log
    done = run(capfd, "release a trial", experiment=str(quarantined), trials=["bad"])
    assert_ran(done, "release_trial")
    assert f"Trial bad runs again with the next restore of {quarantined}" in done.log
    assert read_ledger(open_store(str(quarantined)))[0].quarantined(None) == {}


def test_undo_only_with_the_name_of_the_experiment(quarantined, capfd):
    store = open_store(str(quarantined))
    newest = read_base(store).state_file.name
    done = run(capfd, "undo the last commit", experiment=str(quarantined), confirm="other")
    assert done.state == "failed"
    assert "set confirm to 'exp'" in done.log
    assert read_base(store).state_file.name == newest
    done = run(capfd, "undo the last commit", experiment=str(quarantined), confirm="exp")
    assert_ran(done, "undo_commit")
    assert f"{newest} is deleted" in done.log


@pytest.mark.parametrize(
    ("operation", "trials"),
    [("release a trial", []), ("restore only these trials", ["bad", ""])],
)
def test_what_is_missing_is_named_and_nothing_is_done(quarantined, capfd, operation, trials):
    done = run(capfd, operation, experiment=str(quarantined), trials=trials)
    assert done.state == "failed"
    assert f"To {operation}, fill in trials. Nothing was done." in done.log
    assert done.states["choose"] == ["failed"]


def test_restore_only_one_trial(tmp_path, capfd):
    experiment = copy_sweep("killed", tmp_path / "killed")
    before = ends(experiment)
    (chosen,) = (trial_id for trial_id, (_, iteration) in before.items() if iteration == 2)
    done = run(
        capfd,
        "restore only these trials",
        experiment=str(experiment),
        trials=[chosen],
        stale_after=0,
    )
    assert done.states["restore.trial"] == ["success"], done.log
    assert_ran(done, "restore.plan", "restore.trial", "restore.commit", "restore.done")
    assert ends(experiment) == before | {chosen: ("TERMINATED", 6)}
    assert "not among the chosen trials, stays as it is" in done.log
