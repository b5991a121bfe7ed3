"""More of ../test_against_tuner_restore.py: the same comparison of other experiments."""

import shutil

import pytest

from tests.support.experiments.failed import make_killed_experiment
from tests.support.ray.compared import (
    RESUMED,
    Case,
    ask_ray,
    assert_untouched,
    compare,
    restore_ours,
)

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
    original = failed_experiments[case.kind]
    theirs = ask_ray(hosts, case, original, tmp_path)
    ours = restore_ours(hosts, case, original, tmp_path)
    _assert_same(case, ours, theirs, 1 if case.kind in ("sparse", "retries", "kept") else 2)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """An experiment of our own: Ray draws samples where it was made."""
    return make_killed_experiment(tmp_path_factory.mktemp("original"), "left")


@pytest.mark.parametrize("case", LEFT, ids=str)
def test_samples_that_are_left_are_drawn_as_tuner_restore_draws_them(hosts, tmp_path, case, left):
    before = set(left.iterdir())
    theirs = ask_ray(hosts, case, left, tmp_path)
    ours = restore_ours(hosts, case, left, tmp_path)
    for path in set(left.iterdir()) - before:
        shutil.rmtree(path)  # Ray's samples; see `compare`
    _assert_same(case, ours, theirs, 3)


def _assert_same(case, ours, theirs, most):
    """Ray and we came to the same, and we touched nothing; beside a state lie those of searchers."""
    assert ours.summary is not None
    assert ours.summary.failed == ()
    compare(ours.described, theirs, case)
    assert_untouched(ours, most)
