"""A DAG that restores only the trials that it names."""

import pytest

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search_steps import experiment_to_continue
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_attempt


def plan(experiment, **arguments):
    context = make_context()
    items = BuildRestorePlanOperator(
        task_id="plan", experiments=str(experiment), stale_after=0, **arguments
    ).execute(context)
    return [item["trial_id"] for item in items], context["ti"].pushed["outcomes"]


@pytest.mark.parametrize("trials", [["a3"], "a3", " a3\n", "['a3']"])
def test_only_the_named_trials_are_mapped(errored, trials):
    items, _ = plan(errored, trials=trials, resume_errored=True)
    assert items == ["a3"]


def test_without_trials_all_are_mapped(errored):
    items, _ = plan(errored, resume_errored=True)
    assert sorted(items) == ["a1", "a3"]


@pytest.mark.parametrize("rendered", ["", "None", None, [], "[]", [""], "['']", "[' ', 'a1']"])
def test_a_template_that_names_no_trial_restores_none(errored, rendered):
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(errored),
        resume_errored=True,
        stale_after=0,
        trials="{{ params.trials }}",
    )
    operator.trials = rendered
    with pytest.raises(AirflowFailException, match="trials="):
        operator.execute(make_context())
    assert not (errored / ".tune_restore").exists()


def test_a_named_trial_that_no_flag_takes_skips_the_task_and_the_flag_is_named(errored):
    with pytest.raises(
        AirflowSkipException, match=r"1 ERROR trial stays as it is: resume_errored=True"
    ):
        plan(errored, trials=["a1"])


def test_an_unknown_trial_is_refused_and_named(errored):
    items, (refused,) = plan(errored, trials=["a9"], resume_errored=True)
    assert (items, refused["outcome"]) == ([], "refused")
    assert "has no trial 'a9'" in refused["reason"]


def test_the_search_is_left_to_a_later_restore(tmp_path):
    rows = [make_row("a1", status="ERROR"), make_row("a2", status="RUNNING")]
    experiment = make_experiment(tmp_path / "exp", rows, total_samples=5)
    _, (restore,) = plan(experiment, trials="a1", resume_errored=True)
    store = open_store(str(experiment))
    leave_attempt(store, read_plan(store, restore["restore_id"]), "a1")
    commit = CommitRestoreOperator(task_id="commit", outcomes=[restore])
    (done,) = commit.execute(make_context())
    assert "3 samples were never drawn" in done["headline"]
    with pytest.raises(AirflowSkipException, match="no samples are left to draw"):
        experiment_to_continue(done)


@pytest.mark.parametrize(
    ("trial", "outcomes"),
    [("a3", ["restored", "left_alone"]), ("a9", ["refused", "refused"])],
)
def test_of_several_experiments_those_without_the_trial_are_left_alone(
    errored, tmp_path, trial, outcomes
):
    other = make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])
    context = make_context()
    BuildRestorePlanOperator(
        task_id="plan",
        experiments=[str(errored), str(other)],
        resume_errored=True,
        stale_after=0,
        trials=[trial],
    ).execute(context)
    pushed = context["ti"].pushed["outcomes"]
    assert [item["outcome"] for item in pushed] == outcomes
    assert f"other has no trial {trial!r}" in pushed[1]["reason"]
