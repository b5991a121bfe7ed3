"""A searcher that was interrupted, and references in configs; more: slow/test_more_of_settings.py.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from tests.support.ray.pair import RECIPES, make_pair

FUNCTION = "tests.support.experiments.generated:function"


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


def test_a_searcher_that_is_named_goes_on_where_the_lost_one_was(hosts, tmp_path, told):
    """Ray has tuner.pkl and we have not; both come to the same end."""
    env = {"CONFORMANCE_CAUSE": str(tmp_path / "never")}
    pair = make_pair(
        hosts, tmp_path, "searched", trainable=FUNCTION, dies_after=2, is_saved=True, env=env
    )
    pair.env.update(env)
    (pair.ours / "tuner.pkl").unlink()
    alone = pair.restore_ours()
    assert (alone.failed, alone.samples_left, alone.is_done) == ((), 1, False)
    with pytest.raises(InvalidInputError, match="1 sample cannot be drawn without their searcher"):
        pair.restore_ours()
    ours, theirs = told(pair, search_alg=f"{RECIPES}:CountingSearcher")
    assert ours["completed"] == theirs["completed"] == ["done", "done"]
    mine, his = (pair.describe(each)["trials"] for each in (pair.ours, pair.theirs))
    assert [t["config"] for t in mine] == [t["config"] for t in his]
    assert [t["status"] for t in mine] == [t["status"] for t in his] == ["TERMINATED"] * 2


def test_a_searcher_that_refuses_all_results_draws_all_samples(hosts, tmp_path):
    """Ray's run breaks off at the first; and its limiter would wait for that trial."""
    env = {"CONFORMANCE_CAUSE": str(tmp_path / "never")}
    pair = make_pair(
        hosts, tmp_path, "refusing", trainable=FUNCTION, dies_after=2, is_saved=True, env=env
    )
    pair.env.update(env, CONFORMANCE_REFUSES="on_trial_result on_trial_complete")
    summary = pair.restore_ours()
    assert summary.is_done, summary.headline()
    trials = pair.describe(pair.ours)["trials"]
    assert [trial["status"] for trial in trials] == ["TERMINATED"] * 3
    rows = [sorted({row["training_iteration"] for row in trial["rows"]}) for trial in trials]
    assert rows == [[1, 2, 3]] * 3


def test_references_in_a_param_space_are_refreshed(hosts, tmp_path, cause):
    module = "tests.support.ray.referenced"
    pair = make_pair(
        hosts, tmp_path, "one", module=module, trainable="uses_references", cause=str(cause)
    )
    pair.param_space = f"{module}:fresh"
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    assert ends.column("status") == ["TERMINATED"]
    for each in (ends.ours, ends.theirs):  # a config's text holds an address
        ((row,),) = (trial["rows"] for trial in each["trials"])
        assert (row["score"], row["held"]) == (11, "Reference")
