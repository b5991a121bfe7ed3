"""More of ../test_settings.py: schedulers, stoppers, budgets, grids, configs and resources.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.support.ray.pair import make_pair

FUNCTION = "tests.support.experiments.generated:function"


def test_searcher_and_scheduler_are_the_experiments_own(hosts, tmp_path, cause, told):
    """The searcher remembers all results, also those from before; Ray does not save schedulers."""
    env = {"CONFORMANCE_CAUSE": str(cause)}
    pair = make_pair(hosts, tmp_path, "searched", trainable=FUNCTION, env=env)
    cause.unlink()
    ours, theirs = told(pair, {"resume_errored": True})
    assert ours == theirs
    assert ours["scheduler"] == 2  # the second and third iteration of the first trial
    assert len(ours["searcher"]) == 1 + 3 + 2


def test_a_searcher_that_cannot_suggest_breaks_the_run_off_and_the_next_goes_on(hosts, tmp_path):
    env = {"CONFORMANCE_CAUSE": str(tmp_path / "never")}
    pair = make_pair(
        hosts, tmp_path, "refusing", trainable=FUNCTION, dies_after=2, is_saved=True, env=env
    )
    pair.env.update(env, CONFORMANCE_REFUSES="suggest")
    summary = pair.restore_ours()
    assert summary.broke_off.startswith("ValueError: suggest is refused")
    assert not summary.is_done
    pair.env.pop("CONFORMANCE_REFUSES")
    summary = pair.restore_ours()
    assert summary.is_done, summary.headline()
    trials = pair.describe(pair.ours)["trials"]
    assert [trial["status"] for trial in trials] == ["TERMINATED"] * 3


@pytest.mark.parametrize("kind", ["optuna", "hyperopt"])
def test_searchers_of_ray_go_on_where_the_lost_ones_were(hosts, tmp_path, kind):
    """Named without the limiter that was around it: that is put there again."""
    pair = make_pair(hosts, tmp_path, "learned", trainable="short", dies_after=2, kind=kind)
    (pair.ours / "tuner.pkl").unlink()
    summary = pair.restore_ours(search_alg=f"tests.support.experiments.searchers:{kind}")
    assert summary.is_done, summary.headline()
    (newest,) = pair.ours.glob("search_gen_state-*_r*.json")
    assert b"name:ConcurrencyLimiter" in newest.read_bytes()
    trials = pair.describe(pair.ours)["trials"]
    assert [trial["status"] for trial in trials] == ["TERMINATED"] * 4
    assert len({trial["config"] for trial in trials}) == 4


def test_a_repeated_and_limited_searcher_repeats_nothing_more_than_it_should(hosts, tmp_path):
    env = {"CONFORMANCE_CAUSE": str(tmp_path / "never")}
    pair = make_pair(hosts, tmp_path, "repeated", trainable=FUNCTION, dies_after=4, env=env)
    pair.env.update(env)
    ends = pair.restore()
    for each in (ends.ours, ends.theirs):
        drawn = Counter(json.loads(t["config"])["trial"]["number"] for t in each["trials"])
        assert drawn == {1: 2, 2: 2}
    assert ends.column("status") == ["TERMINATED"] * 4


def test_a_spent_time_budget_ends_a_resumed_trial_at_once(hosts, tmp_path, cause):
    """The stopper in the state knows what is left of the budget; here it is nothing."""
    pair = make_pair(hosts, tmp_path, "budgeted", trainable="slowly", cause=str(cause))
    for experiment in (pair.theirs, pair.ours):
        spend_budget(max(experiment.glob("experiment_state-*")))
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    assert ends.column("status") == ["TERMINATED"]
    assert [len(rows) for rows in ends.column("rows")] == [1]


def spend_budget(state: Path) -> None:
    """Leave nothing of the time budget in a state."""
    from ray import cloudpickle

    document = json.loads(state.read_text())
    pickled = document["runner_data"]["_stopper"]
    stopper = cloudpickle.loads(bytes.fromhex(pickled["value"]))
    stopper._budget = -1.0
    pickled["value"] = cloudpickle.dumps(stopper).hex()
    state.write_text(json.dumps(document))


def test_what_fail_fast_cut_short_is_told_apart_and_resumed_by_choice(hosts, tmp_path, cause):
    """Ray marks it TERMINATED, and its restore ends at the first step: it remembers the error."""
    pair = make_pair(hosts, tmp_path, "failing_fast", trainable="slowly", cause=str(cause))
    statuses = sorted(trial["status"] for trial in pair.describe(pair.ours)["trials"])
    assert statuses == ["ERROR", "TERMINATED"]
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    by_status = {trial["status"] for trial in ends.theirs["trials"]}
    assert by_status == {"TERMINATED"}
    assert max(len(trial["rows"]) for trial in ends.theirs["trials"]) < 12
    finished = [t["rows"][-1]["training_iteration"] for t in ends.ours["trials"] if t["rows"]]
    assert 4 in finished  # the one that had failed has ended here, where Ray ended it at once
    # another night, and by choice: the one that was cut short, too
    pair.restore_ours({"resume_cut_short": True})
    ends = pair.describe(pair.ours)["trials"]
    assert sorted((t["status"], t["rows"][-1]["training_iteration"]) for t in ends) == [
        ("TERMINATED", 4), ("TERMINATED", 12),
    ]  # fmt: skip


def test_resources_given_at_the_restore_are_the_ones_a_trial_gets(hosts, tmp_path, cause):
    pair = make_pair(hosts, tmp_path, "resourceful", trainable="asks_for_two", cause=str(cause))
    cause.unlink()
    with hosts.fresh(tmp_path) as fresh:
        pair.hosts = fresh
        ends = pair.restore({"resume_errored": True})
    ends.assert_same()
    (rows,) = ends.column("rows")
    assert [row["score"] for row in rows] == [1, 2, 2]


def test_a_class_with_parameters_is_resumed(hosts, tmp_path, cause):
    pair = make_pair(
        hosts, tmp_path, "parameterised", trainable="with_parameters", cause=str(cause)
    )
    cause.unlink()
    with hosts.fresh(tmp_path) as fresh:
        pair.hosts = fresh
        ends = pair.restore({"resume_errored": True})
    ends.assert_same()
    assert ends.column("status") == ["TERMINATED"]


@pytest.mark.parametrize("preset", [False, True])
def test_of_a_grid_every_point_is_drawn_once(hosts, tmp_path, preset):
    pair = make_pair(hosts, tmp_path, "grid", trainable="short", dies_after=2, preset=preset)
    ends = pair.restore()
    for each in (ends.ours, ends.theirs):
        drawn = Counter(tuple(json.loads(t["config"]).values()) for t in each["trials"])
        assert set(drawn.values()) == {1}
        assert drawn.total() == (6 if preset else 4)
    assert ends.column("config")


def test_a_callbacks_and_a_stoppers_memory_outlives_two_restores(hosts, tmp_path, cause, told):
    """Three results from before, one in the first restore; the stopper's fifth is the second's first."""
    second = tmp_path / "second cause"
    second.touch()
    pair = make_pair(
        hosts, tmp_path, "with_states", trainable="fails_twice", cause=str(cause),
        second_cause=str(second),
    )  # fmt: skip
    cause.unlink()
    ours, theirs = told(pair, {"resume_errored": True})
    assert ours == theirs == {"callback": 3}
    second.unlink()
    ours, theirs = told(pair, {"resume_errored": True})
    assert ours == theirs == {"callback": 5}
    mine, his = (pair.describe(each)["trials"] for each in (pair.ours, pair.theirs))
    assert mine == his
    assert [len(trial["rows"]) for trial in mine] == [5]  # stopped at the fifth of nine


@pytest.mark.parametrize("strategy", ["auto", "whole_experiment"])
def test_references_in_a_param_space_are_refreshed_in_old_and_new_trials(
    hosts, tmp_path, cause, strategy
):
    pair = make_pair(
        hosts, tmp_path, "referenced", trainable="uses_references", dies_after=None,
        cause=str(cause),
    )  # fmt: skip
    pair.param_space = "tests.support.experiments.recipes:fresh_references"
    cause.unlink()
    ends = pair.restore({"resume_errored": True}, strategy=strategy)
    assert ends.column("status") == ["TERMINATED", "TERMINATED"]
    for each in (ends.ours, ends.theirs):  # in any order: a config's text holds an address
        rows = [trial["rows"][0] for trial in each["trials"]]
        assert sorted(row["score"] for row in rows) == [11, 12]
        assert {row["held"] for row in rows} == {"Reference"}
