"""The example DAGs and a small one, run by `dag.test()` where nothing is trained."""

import pytest

from tests.support import ROOT
from tests.support.airflow.dag_test import register, run, run_example
from tests.support.experiments.built import make_experiment, make_row
from tests.support.experiments.sweeps import copy_sweep

pytestmark = pytest.mark.usefixtures("database")


def test_all_are_parsed_without_an_error_or_a_warning():
    from tests.support.airflow.names import DagBag

    bag = DagBag(ROOT / "dags")
    assert not bag.import_errors
    assert not bag.captured_warnings
    assert sorted(bag.dags) == [
        "event_driven_recovery",
        "nightly_recovery",
        "recover_experiment",
        "sweep_that_reports",
        "sweep_with_recovery",
        "tune_restore_admin",
    ]


def test_nightly_recovery_without_anything_to_do_succeeds_and_says_so(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("AIRFLOW_VAR_TUNE_RESTORE_PREFIX", str(tmp_path))  # instead of the Param
    done = run_example("nightly_recovery", capfd)
    assert done.state == "success"
    assert done.states == {
        "restore.find": ["skipped"],
        "restore.plan": ["skipped"],
        "restore.trial": ["skipped"],
        "restore.commit": ["skipped"],
        "restore.continue_search": ["skipped"],
        "restore.done": ["success"],
    }
    assert f"Nothing to restore under {tmp_path}" in done.log
    assert "Nothing to commit: the plan was given no experiment." in done.log


def test_nightly_recovery_of_one_experiment_looks_at_nothing_else(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("AIRFLOW_VAR_TUNE_RESTORE_PREFIX", str(tmp_path))
    copy_sweep("errored", tmp_path / "errored")
    finished = make_experiment(tmp_path / "all_done", [make_row("t")])
    done = run_example("nightly_recovery", capfd, experiment=str(finished))
    assert done.states["restore.plan"] == ["skipped"]
    assert f"Nothing to restore under {finished}" in done.log
    assert "1 experiment; 1 finished" in done.log


def test_without_any_prefix_the_first_task_says_what_is_missing(capfd):
    done = run_example("nightly_recovery", capfd)
    assert done.state == "failed"
    assert "An address must be a path or a URL as text, not ''." in done.log


def test_of_two_plans_of_one_experiment_the_second_is_skipped_and_names_the_first(tmp_path, capfd):
    """In one DAG run: if the first had ended, Airflow would be asked, and its lease taken over."""
    from airflow.sdk import DAG

    from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator

    experiment = copy_sweep("errored", tmp_path / "errored")
    with DAG("plans_only", schedule=None) as dag:
        first, second = (
            BuildRestorePlanOperator(
                task_id=task_id, experiments=str(experiment), resume_errored=True, retries=0
            )
            for task_id in ("first", "second")
        )
        first >> second
    register(dag)
    done = run(dag, capfd)
    assert done.states == {"first": ["success"], "second": ["skipped"]}
    assert "another restore, DAG plans_only, run manual__" in done.log
