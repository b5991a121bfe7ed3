"""More of ../test_against_tuner_restore.py: the same comparison of other experiments."""

import shutil

import pytest

from airflow_tune_restore.experiments import layout
from tests.support.experiments.failed import make_killed_experiment
from tests.support.ray.compared import RESUMED, Case, compare, restore_both

CASES = [
    *(Case(kind, kind, RESUMED) for kind in ("sparse", "retries", "extras", "kept")),
    Case("pbt, one run of all", "pbt", RESUMED),
    Case("uncoupled, forced into one run", "limited", RESUMED, strategy="whole_experiment"),
]
LEFT = [
    Case("killed, samples left", "left"),
    Case("killed, one run draws", "left", strategy="whole_experiment"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_restore_ends_as_tuner_restore_ends(hosts, failed_experiments, tmp_path, case):
    end = restore_both(hosts, case, failed_experiments[case.kind], tmp_path)
    _assert_same(case, end, most=1 if case.kind in ("sparse", "retries", "kept") else 2)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """An experiment of our own: Ray draws samples where it was made."""
    return make_killed_experiment(tmp_path_factory.mktemp("original"), "left")


@pytest.mark.parametrize("case", LEFT, ids=str)
def test_samples_that_are_left_are_drawn_as_tuner_restore_draws_them(hosts, tmp_path, case, left):
    before = set(left.iterdir())
    end = restore_both(hosts, case, left, tmp_path)
    for path in set(left.iterdir()) - before:
        shutil.rmtree(path)  # Ray's samples; see `compare`
    _assert_same(case, end, most=3)


def _assert_same(case, end, most):
    """Ray and we came to the same, and we touched nothing; beside a state lie those of searchers."""
    assert end.summary is not None
    assert end.summary.failed == ()
    compare(end.ours, end.theirs, case)
    assert {name: end.after[name] for name in end.before} == end.before
    added = set(end.after) - set(end.before)
    assert len(added) <= most
    assert all(layout.is_committed(name) for name in added)
