"""A DAG that restores only the trials that match."""

import pytest
from airflow.sdk import DAG

from airflow_tune_restore.arguments import parse_only
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.restore.only import Only
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row


def plan(*experiments, **arguments):
    context = make_context()
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=list(map(str, experiments)),
        stale_after=0,
        resume_errored=True,
        **arguments,
    )
    items = operator.execute(context)
    return [item["trial_id"] for item in items], context["ti"].pushed["outcomes"]


@pytest.fixture
def sweeps(tmp_path):
    """Experiments of two teams, with one trial each."""
    return [
        make_experiment(tmp_path / path, [make_row(trial, status="ERROR", last_result={"loss": loss})])
        for path, trial, loss in [
            ("team_a/x", "a1", 0.1), ("team_b/y", "b1", 0.9), ("team_b/team_a/z", "b2", 0.2),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "only",
    [
        {"trial": ["a3"], "status": "ERROR"},
        {"trial": "['a3']"},  # as a template renders a Param
        "trial=a3",
        "['trial=a3', 'status=ERROR']",
        "{'trial': ['a3'], 'status': 'ERROR'}",
        ["trial=a3, a2"],
    ],
)
def test_only_trials_that_match_are_mapped(errored, only):
    assert plan(errored, only=only)[0] == ["a3"]


def test_an_experiment_without_a_match_is_left_alone(sweeps):
    items, outcomes = plan(*sweeps, only="metric=loss<0.5")
    assert items == ["a1", "b2"]
    assert [each["outcome"] for each in outcomes] == ["restored", "left_alone", "restored"]
    assert "no trial that would run matches only=metric=loss<0.5" in outcomes[1]["reason"]


def test_a_team_s_glob_takes_nothing_of_another_team(sweeps, tmp_path):
    items, outcomes = plan(*sweeps, only={"experiment": "team_a/**"}, prefix=str(tmp_path))
    assert items == ["a1"]
    assert [each["outcome"] for each in outcomes] == ["restored", "left_alone", "left_alone"]
    assert outcomes[1]["reason"] == "no glob of only=experiment=team_a/** names it"
    whole = {"experiment": f"{tmp_path}/team_b/**"}
    assert plan(*sweeps[1:], only=whole)[0] == ["b1", "b2"]


def test_ids_of_several_experiments(sweeps):
    assert plan(*sweeps, only={"trial": ["a1", "b1"]})[0] == ["a1", "b1"]


def test_ids_that_no_experiment_has_are_refused(sweeps):
    items, outcomes = plan(*sweeps, only={"trial": ["c1"]})
    assert items == []
    assert {each["outcome"] for each in outcomes} == {"refused"}
    assert "has no trial 'c1'" in outcomes[0]["reason"]


def test_without_any_match_the_task_is_skipped(sweeps):
    with pytest.raises(AirflowSkipException, match="only=cause=node_lost"):
        plan(*sweeps, only={"cause": "node_lost"})


@pytest.mark.parametrize(
    "rendered",
    [
        "", "None", " \n", None, [], {}, "[]", "{}", [""],
        {"cause": ""}, {"cause": "[]"}, {"trial": "['']"},
    ],
)  # fmt: skip
def test_a_template_that_renders_to_nothing_restores_nothing(errored, rendered):
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), stale_after=0, only="{{ params.only }}"
    )
    operator.only = rendered
    with pytest.raises(AirflowFailException, match="only"):
        operator.execute(make_context())
    assert not (errored / ".tune_restore").exists()


@pytest.mark.parametrize("only", [{}, "cause=lost_node", {"metric": "loss"}, {"error": "("}])
def test_a_literal_is_checked_when_the_dag_is_parsed(only):
    with pytest.raises(InvalidInputError, match="only"):
        BuildRestorePlanOperator(task_id="plan", experiments="/x", only=only)


def test_the_group_passes_it_and_the_prefix_on():
    with DAG("recovery", schedule=None):
        group = TuneRestoreTaskGroup(
            trainable="m:train", prefix="/sweeps", only={"experiment": "a/**"}
        )
    assert group.plan.only == {"experiment": "a/**"}
    assert group.plan.prefix == "/sweeps"
    assert {"only", "prefix"} <= set(group.plan.template_fields)


def test_a_pattern_that_looks_like_a_list_is_a_pattern():
    assert parse_only("only", {"error": "[0-9]", "experiment": "['a']"}) == Only(
        error=("[0-9]",), experiment=("['a']",)
    )
