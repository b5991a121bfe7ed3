"""Small DAGs run by `dag.test()` with real Ray: trials that fail again, and one that hangs."""

import shutil
from datetime import timedelta

import pytest

from tests.support.airflow import home as airflow_home  # imported before any of Airflow
from tests.support.airflow.dag_test import register, run
from tests.support.airflow.names import RELEASE
from tests.support.experiments.sweeps import copy_sweep, ends

pytestmark = pytest.mark.usefixtures("database")


def statuses(experiment) -> list[str]:
    return [status for status, _ in ends(experiment)]


def test_a_trial_that_fails_again_is_committed_and_fails_the_run(tmp_path, capfd):
    from airflow.sdk import DAG

    from airflow_tune_restore.task_group import TuneRestoreTaskGroup

    errored = copy_sweep("errored", tmp_path / "errored")
    with DAG("fails_again", schedule=None) as dag:
        TuneRestoreTaskGroup(
            experiments=str(errored),
            trainable="example_sweep:train",
            resume_errored=True,
            trial_args={"retries": 5, "retry_delay": timedelta(0)},
        )
    register(dag)
    done = run(dag, capfd)
    assert done.state == "failed"
    assert "attempt 1 of restore" in done.log
    assert "attempt 2 of restore" in done.log
    # it ends where the first one did: the retry policy spends no more of the five
    assert "attempt 3 of restore" not in done.log
    assert "it failed at the same place and iteration before (dags/example_sweep.py:" in done.log
    if RELEASE < (3, 3):  # no retry policies: the task's own `retry_delay`
        assert "Airflow retries it at once (try 2 of 6), as attempt 2." in done.log
    else:
        assert "out_of_memory: retried in 0:01:00" in done.log
        assert "Airflow retries it in 60 s (try 2 of 6), as attempt 2." in done.log
    assert done.log.count("::group::Traceback of MemoryError: ") == 2  # one for each attempt
    assert done.states["restore.trial"] == ["failed"]
    assert done.states["restore.commit"] == ["success"]
    assert done.states["restore.done"] == ["upstream_failed"]
    assert "needs more memory than this node has" in done.log
    assert "failed again (out_of_memory): MemoryError: " in done.log
    assert "0 of 1 resumed trial finished, 1 did not" in done.log
    assert "1 quarantined (" in done.log
    assert statuses(errored) == ["ERROR"] + ["TERMINATED"] * 3
    # the next night leaves it alone, and says why
    done = run(dag, capfd)
    assert done.state == "success"
    assert done.states["restore.trial"] == ["skipped"]
    assert "run again" in done.log


def test_a_trial_that_hangs_is_stopped_by_its_timeout_and_goes_on_the_next_night(
    failed_experiments, tmp_path, capfd, monkeypatch
):
    from airflow.sdk import DAG

    from airflow_tune_restore.task_group import TuneRestoreTaskGroup

    experiment = shutil.copytree(failed_experiments["killed"], tmp_path / "killed")
    with DAG("times_out", schedule=None) as dag:
        TuneRestoreTaskGroup(
            experiments=str(experiment),
            trainable="tests.trainables:counting",
            stale_after=0,
            trial_args={"retries": 0, "execution_timeout": timedelta(seconds=90)},
        )
    register(dag)
    monkeypatch.syspath_prepend(airflow_home.ROOT)
    first = run(dag, capfd)
    assert sorted(first.states["restore.trial"]) == ["failed", "success"]
    assert first.states["restore.commit"] == ["success"]
    assert "Stopping the runner; it saves a snapshot first." in first.log
    assert statuses(experiment)[1:] == ["TERMINATED"] * 2
    monkeypatch.setenv("TUNE_TEST_HEALED", "1")
    second = run(dag, capfd)
    assert second.state == "success"
    assert second.states["restore.trial"] == ["success"]
    assert "iteration 3, " in second.log
    assert "iteration 2, " not in second.log
    assert statuses(experiment) == ["TERMINATED"] * 3
