"""Which trials share a driver: short ones do by default, and the strategy forces either."""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.sharing import SHORT_SECONDS
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_attempt, plan_night, start_night


def failed(name, *, iteration=5, seconds=0.1, **more):
    result = {"training_iteration": iteration, "time_this_iter_s": seconds} if iteration else {}
    return make_row(name, status="ERROR", error=True, last_result=result, **more)


def finished(name, iteration, seconds=0.1):
    result = {"training_iteration": iteration, "time_this_iter_s": seconds}
    return make_row(name, status="TERMINATED", last_result=result)


def shared(tmp_path, rows, **choices):
    plan = plan_night(open_store(str(make_experiment(tmp_path / "x", rows))), **choices)
    return [trial.trial_id for trial in plan.trials if trial.shares_driver], plan


def test_short_trials_share_a_driver_and_the_plan_gives_the_reason(tmp_path):
    names, plan = shared(tmp_path, [failed("a"), failed("b"), finished("c", 10)])
    assert sorted(names) == ["a", "b"]
    assert plan.strategy == "shared_driver"
    assert "2 of 2 need at most 10 min each" in plan.strategy_reason
    assert plan.units == [trial.trial_id for trial in plan.to_run]
    assert RestorePlan.from_json(plan.to_json()) == plan


def test_a_trial_with_long_left_keeps_a_driver_of_its_own(tmp_path):
    rows = [failed("a"), failed("b"), failed("slow", seconds=SHORT_SECONDS), finished("c", 10)]
    names, plan = shared(tmp_path, rows)
    assert sorted(names) == ["a", "b"]
    assert "2 of 3" in plan.strategy_reason


def test_one_trial_alone_shares_with_nobody(tmp_path):
    names, plan = shared(tmp_path, [failed("a"), finished("c", 10)])
    assert names == []
    assert plan.strategy == "per_trial"


@pytest.mark.parametrize(
    ("rows", "are_short"),
    [
        # the criterion names the end: 95 iterations of 10 s
        ([failed(n, seconds=10, stopping_criterion={"training_iteration": 100}) for n in "ab"], False),
        ([failed(n, seconds=1, stopping_criterion={"training_iteration": 100}) for n in "ab"], True),
        # those that finished do
        ([failed("a", seconds=10), failed("b", seconds=10), finished("c", 100, 10)], False),
        # nothing does: as long again as it has run
        ([failed("a", iteration=50, seconds=20), failed("b", iteration=50, seconds=20)], False),
        ([failed("a", iteration=5, seconds=20), failed("b", iteration=5, seconds=20)], True),
        # one that never reported takes as long as the others
        ([failed("a"), failed("b", iteration=0)], True),
        # nothing is known
        ([failed("a", iteration=0), failed("b", iteration=0)], False),
        ([failed("a", seconds=float("nan")), failed("b", seconds="much")], False),
    ],
)  # fmt: skip
def test_what_is_left_is_read_from_recorded_times(tmp_path, rows, are_short):
    names, _ = shared(tmp_path, rows)
    assert (sorted(names) == ["a", "b"]) == are_short
    assert are_short or not names


def test_the_strategy_forces_either(tmp_path):
    slow = [failed("a", iteration=900, seconds=SHORT_SECONDS), failed("b", iteration=0)]
    assert sorted(shared(tmp_path, slow, strategy="shared_driver")[0]) == ["a", "b"]
    names, plan = shared(tmp_path, [failed("a"), failed("b")], strategy="per_trial")
    assert (names, plan.strategy) == ([], "per_trial")
    names, plan = shared(tmp_path, [failed("a"), failed("b")], strategy="whole_experiment")
    assert (names, plan.strategy) == ([], "whole_experiment")


@pytest.mark.parametrize(
    ("cause", "shares"), [("trainable", True), ("killed", False), ("out_of_memory", False)]
)
def test_a_trial_whose_runner_died_before_never_shares(tmp_path, cause, shares):
    rows = [failed("a"), failed("b"), failed("c"), finished("d", 10)]
    store = open_store(str(make_experiment(tmp_path / "x", rows)))
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a", result="failed", cause=cause)
    commit_restore(store, "r1")
    plan = plan_night(store, "r2")
    assert plan.trial("a").shares_driver == shares
    assert plan.trial("b").shares_driver


def test_a_trial_with_a_very_long_id_does_not_share(tmp_path):
    names, _ = shared(tmp_path, [failed("a"), failed("b"), failed("c" * 201)])
    assert sorted(names) == ["a", "b"]


def test_coupled_trials_cannot_share_without_being_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "airflow_tune_restore.restore.planner._coupling", lambda _: "trials are coupled by X"
    )
    with pytest.raises(InvalidInputError, match="coupled by X, and trials that share a driver"):
        shared(tmp_path, [failed("a"), failed("b")], strategy="shared_driver")
