"""The check of a plan task: which processes check which experiments, and what their answers are."""

from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    RunnerError,
    TrainableMisfitError,
)
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators.trainable_check import TrainableCheck
from airflow_tune_restore.protocol.check import CheckAnswer, MatchedBy, Problem
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.recipe import Recipe

OWN = {
    **dict.fromkeys(("trainable", "param_space", "search_alg", "python")),
    "imports": (),
    "env": {"OWN": "1"},
}
FITS = CheckAnswer(experiment="", matched_by=MatchedBy.MODULE)
MISFIT = CheckAnswer(experiment="", problem=Problem.MISFIT, message="It is another one.")
DOUBTED = CheckAnswer(experiment="", message="It may be another one.")


class Hook:
    """Has credentials for every connection except `broken`."""

    @contextmanager
    def runner_env(self, place):
        if place.conn_id == "broken":
            raise InvalidInputError("Connection 'broken' is of type 'http'.")
        yield {"KEY": str(place.conn_id)}


def restore(name, *, has_work=True, is_started=False, nothing_to_do="", recipe="m:train"):
    base = SimpleNamespace(name="state")
    plan = SimpleNamespace(
        experiment=f"s3://b/{name}",
        trainable_name="train",
        base=base,
        ignore_tuner=False,
        choices=PlanChoices(),
        has_work=has_work,
    )
    return SimpleNamespace(
        plan=plan,
        searcher_lost="",
        is_started=is_started,
        nothing_to_do=nothing_to_do,
        options=PrepareOptions(recipe=Recipe.parse(recipe)),
    )


@pytest.fixture
def check(launcher):
    """Checks experiments that are given with their connections."""

    def run(connections, *, is_for_all=True, **prepared):
        places = {name: Address(f"s3://b/{name}", conn) for name, conn in connections.items()}
        trainable_check = TrainableCheck(
            hook=Hook(),
            launcher="local",
            runner_user=None,
            own=OWN,
            is_for_all=is_for_all,
            timeout=timedelta(seconds=1),
        )
        return trainable_check.run(places, {name: restore(name) for name in places} | prepared)

    return run


def asked(launcher):
    return [[one.experiment for one in request.experiments] for request in launcher.checked]


def test_one_process_checks_all_experiments_with_the_same_credentials(check, launcher):
    checked = check({"a": "one", "b": None, "c": "one", "d": None})
    assert asked(launcher) == [["s3://b/a", "s3://b/c"], ["s3://b/b", "s3://b/d"]]
    assert launcher.arguments["env"] == {"KEY": "None", "OWN": "1"}
    assert checked.errors == {}


def test_what_is_started_or_runs_nothing_is_not_checked(check, launcher):
    check(
        {"a": None, "b": None, "c": None},
        b=restore("b", is_started=True),
        c=restore("c", has_work=False),
    )
    assert asked(launcher) == [["s3://b/a"]]
    check({"a": None}, a=restore("a", has_work=False))
    assert len(launcher.checked) == 1


def test_one_that_is_planned_again_after_a_settlement_is_checked_before_it(check, launcher):
    check({"a": None}, a=restore("a", has_work=False, nothing_to_do="all its samples are drawn"))
    assert asked(launcher) == [["s3://b/a"]]


def test_each_experiment_has_its_own_answer(check, launcher):
    answers = [FITS, MISFIT, DOUBTED]
    launcher.check = lambda _request, _timeout: answers
    checked = check({"a": None, "b": None, "c": None})
    assert {name: (type(e), str(e)) for name, e in checked.errors.items()} == {
        "b": (TrainableMisfitError, "It is another one.")
    }
    assert checked.by_module == {"a"}
    assert checked.warnings == {"c": "It may be another one."}


def test_a_connection_that_cannot_be_used_costs_its_experiments(check, launcher):
    checked = check({"a": "broken", "b": None})
    assert list(checked.errors) == ["a"]
    assert asked(launcher) == [["s3://b/b"]]


def test_a_trainable_that_cannot_be_used_at_all_is_raised(check, launcher):
    launcher.refusal = InvalidInputError("m:train is a int.")
    with pytest.raises(InvalidInputError, match="is a int"):
        check({"a": None})


def test_a_check_that_is_not_made_is_an_error_of_each_experiment(check, launcher):
    launcher.refusal = RunnerError("stopped after 1 s")
    assert set(check({"a": None, "b": None}).errors.values()) == {launcher.refusal}


def test_each_recipe_is_checked_by_a_process_of_its_own_as_it_will_run(check, launcher):
    other = {"trainable": "other:train", "python": "/venv/python", "env": {"A": "2"}}
    check({"a": None, "b": None, "c": None}, is_for_all=False, b=restore("b", recipe=other))
    assert asked(launcher) == [["s3://b/a", "s3://b/c"], ["s3://b/b"]]
    assert [request.trainable for request in launcher.checked] == ["m:train", "other:train"]
    assert launcher.arguments["python"] == "/venv/python"
    assert launcher.arguments["env"] == {"KEY": "None", "OWN": "1", "A": "2"}


def test_a_trainable_of_one_team_that_cannot_be_used_costs_no_other_team(check, launcher):
    answer = launcher.check

    def refuse(request, timeout):
        if request.trainable == "other:train":
            raise InvalidInputError("other:train is an int.")
        return answer(request, timeout)

    launcher.check = refuse
    checked = check({"a": None, "b": None}, is_for_all=False, b=restore("b", recipe="other:train"))
    assert {name: str(error) for name, error in checked.errors.items()} == {
        "b": "other:train is an int."
    }
