"""The XComs of a plan task -> the restores of its DAG run."""

import json

import pytest

from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import pack
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.trial_items import build_reference
from airflow_tune_restore.operators.xcom import Outcome, OutcomeXCom, TrialXCom
from airflow_tune_restore.plugin.places import Places
from airflow_tune_restore.plugin.run_restores import PlanTask, describe_run, nearest_plan
from airflow_tune_restore.plugin.settings import Settings

PLACES = Places(Settings(prefixes={"s3": Address("s3://bucket/sweeps", "c")}))
OUTCOMES = [
    OutcomeXCom(experiment="s3://c@bucket/sweeps/a", restore_id="r1"),
    OutcomeXCom(
        experiment="s3://c@bucket/sweeps/b", outcome=Outcome.REFUSED, reason="<b>no\nstate</b>"
    ),
    OutcomeXCom(experiment="s3://elsewhere/c", restore_id="r3"),
]


def plan(value, task_id="plan"):
    return PlanTask(task_id, value)


def described(value, item=None):
    return describe_run(PLACES, [plan(value)], item)


@pytest.mark.parametrize("form", ["list", "text", "packed"])
def test_each_outcome_is_shown_with_its_place_below_a_prefix(form):
    value = OutcomeList(tuple(OUTCOMES)).to_xcom()
    forms = {"list": value, "text": json.dumps(value), "packed": json.dumps(pack(value))}
    shown = described(forms[form])
    assert [(each["prefix"], each["path"], each["name"]) for each in shown["restores"]] == [
        ("s3", "a", "a"),
        ("s3", "b", "b"),
        (None, None, "c"),
    ]
    assert [each["restore_id"] for each in shown["restores"]] == ["r1", None, "r3"]
    assert shown["restores"][1]["reason"] == "<b>no state</b>"
    assert shown["restores"][2]["problem"] == "below no configured prefix: s3://elsewhere/c"
    assert (shown["trial"], shown["hidden"]) == (None, 0)


def test_the_task_of_a_trial_shows_that_trial_and_its_restore():
    items = [
        TrialXCom(experiment="s3://elsewhere/c", restore_id="r3", trial_id="t0").to_xcom(),
        TrialXCom(experiment="s3://c@bucket/sweeps/a", restore_id="r1", trial_id="t1").to_xcom(),
    ]
    shown = described([each.to_xcom() for each in OUTCOMES], (json.dumps(items), 1))
    assert shown["trial"] == "t1"
    assert [each["restore_id"] for each in shown["restores"]] == ["r1"]


def test_a_reference_to_a_trial_is_followed():
    items = [build_reference(0, "t1"), build_reference(1, "none"), build_reference(2, "t2")]
    value = [each.to_xcom() for each in OUTCOMES]
    assert described(value, (items, 2))["trial"] == "t2"
    assert described(value, (items, 1))["trial"] is None


@pytest.mark.parametrize("item", [None, 5, "x", [], [5], {"packed": "x"}, "[" * 10_000, [{"a": 1}]])
def test_a_list_that_tells_no_trial_shows_all_restores(item):
    shown = described([each.to_xcom() for each in OUTCOMES], (item, 0))
    assert (shown["trial"], len(shown["restores"])) == (None, 3)


@pytest.mark.parametrize("odd", [7, 0.5, True])
def test_a_trial_whose_id_is_no_text_is_shown(odd):
    mine = OUTCOMES[0].to_xcom()
    item = TrialXCom(experiment=mine["experiment"], restore_id="r1", trial_id="t").to_xcom()
    assert described([mine], ([item | {"trial_id": odd}], 0))["trial"] == str(odd)


@pytest.mark.parametrize(
    "value",
    [
        *(None, 5, "s3://xcoms/1.json", "[" * 10_000, {"packed": "broken"}, [5], [{"x": 1}]),
        [{"experiment": "s3://c@bucket/a", "outcome": "unheard of"}],
        {"__classname__": "builtins.list", "__data__": []},
        "\ud800",
    ],
)
def test_an_xcom_that_is_not_ours_is_a_sentence(value):
    shown = described(value)
    assert [each["name"] for each in shown["restores"]] == ["plan"]
    assert shown["restores"][0]["problem"]


def test_an_address_with_a_secret_is_not_shown():
    shown = described([{"experiment": "s3://key:secret@b/x", "restore_id": "r1"}])
    assert "secret" not in json.dumps(shown)


def test_the_plan_of_a_task_is_the_one_in_its_group_or_the_next_around_it():
    plans = [plan(0, "plan"), plan(1, "team_a.plan"), plan(2, "team_b.plan")]
    nearest = {
        task: nearest_plan(plans, task)[0].value for task in ("trial", "team_b.trial", "x.y")
    }
    assert nearest == {"trial": 0, "team_b.trial": 2, "x.y": 0}
    assert nearest_plan(plans, "team_a.inner.trial")[0].value == 1
    assert nearest_plan([], "trial") == []
