"""Searchers, schedulers, callbacks, stoppers, budgets and configs: behaviours that Ray's own tests pin.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

from tests.support.ray.pair import make_pair

FUNCTION = "tests.support.experiments.generated:function"


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


def test_a_searcher_that_was_interrupted_draws_what_is_left(hosts, tmp_path, cause, told):
    """It learns the results of the resumed trial as in Ray, though that may have run by itself."""
    env = {"CONFORMANCE_CAUSE": str(tmp_path / "never")}  # it fails at no time
    pair = make_pair(
        hosts, tmp_path, "searched", trainable=FUNCTION, dies_after=2, is_saved=True, env=env
    )
    pair.env.update(env)
    ours, theirs = told(pair)
    assert ours["completed"] == theirs["completed"] == ["done", "done"]
    mine, his = (pair.describe(each)["trials"] for each in (pair.ours, pair.theirs))
    assert [t["config"] for t in mine] == [t["config"] for t in his]
    iterations = [
        [[r["training_iteration"] for r in t["rows"]] for t in each] for each in (mine, his)
    ]
    assert iterations[0] == iterations[1]
    assert [sorted(set(rows)) for rows in iterations[0]] == [[1, 2, 3], [1, 2, 3]]
