"""The end of a restore equals the end of `Tuner.restore` on a copy of the same experiment.

Statuses x flags on local disk and on a real S3 server, and each kind of trainable. What Ray does is never
written down here: it is asked, on a copy. Only what differs from run to run (times, pids) is left out.
More of the same: slow/test_more_against_tuner_restore.py.
"""

import pytest

from tests.support.ray.compared import (
    RESUMED,
    Case,
    ask_ray,
    assert_untouched,
    compare,
    restore_ours,
)

FLAGS = [
    # its third trial had failed, too, and is said to have been paused
    Case("errored and paused, no flag", "two_errored", statuses={"fails sparsely": "PAUSED"}),
    Case("errored, resumed", "errored", RESUMED),
    Case("errored, restarted", "errored", {"restart_errored": True}),
    Case("errored, both", "errored", {"resume_errored": True, "restart_errored": True}),
    Case("errored, fails again", "errored", RESUMED, healed=False),
    Case("killed, resumed", "killed"),
    Case("killed, not resumed", "killed", {"resume_unfinished": False}),
    Case(
        "finished, restarted", "errored", {"per_status": {"finished": "restart"}}
    ),  # as ResumeConfig
]
"""Each row of statuses that `Tuner.restore` knows, and what its flags make of them."""

KINDS = [
    Case("class", "class", RESUMED),
    Case("registered", "registered", RESUMED),
    Case("with_parameters", "with_parameters", RESUMED),
    Case("with_resources", "with_resources", RESUMED),
    Case("trainer", "trainer", RESUMED),
    Case("asha, one run of all", "asha", RESUMED),
]


@pytest.fixture(scope="module")
def theirs(failed_experiments, tmp_path_factory):
    """What Ray made of each case, asked once and on disk, for both places of ours."""
    known = {}

    def ask(hosts, case):
        if case.name not in known:
            directory = tmp_path_factory.mktemp("theirs")
            known[case.name] = ask_ray(hosts, case, failed_experiments[case.kind], directory)
        return known[case.name]

    return ask


@pytest.mark.parametrize("place", ["disk", "S3"])
@pytest.mark.parametrize("case", FLAGS, ids=str)
def test_each_flag_ends_as_with_tuner_restore_on_disk_and_on_s3(
    hosts, failed_experiments, theirs, tmp_path, case, place, request
):
    s3 = request.getfixturevalue("s3") if place == "S3" else None
    ours = restore_ours(hosts, case, failed_experiments[case.kind], tmp_path, s3)
    assert_same(case, ours, theirs(hosts, case))


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_each_kind_of_trainable_ends_as_with_tuner_restore(
    hosts, failed_experiments, theirs, tmp_path, case
):
    ours = restore_ours(hosts, case, failed_experiments[case.kind], tmp_path)
    assert_same(case, ours, theirs(hosts, case))


def test_what_ray_makes_of_an_experiment_does_not_depend_on_the_store(
    hosts, failed_experiments, theirs, tmp_path, s3
):
    """Why it is asked on disk only: it ends in the same way where ours lies on S3."""
    (case,) = (case for case in FLAGS if case.name == "errored, resumed")
    on_s3 = ask_ray(hosts, case, failed_experiments[case.kind], tmp_path, s3)
    compare(on_s3, theirs(hosts, case), case)


def assert_same(case, ours, theirs):
    assert bool(ours.summary and ours.summary.failed) == (not case.healed)
    compare(ours.described, theirs, case)
    # beside the state lies that of the searcher, if there is one
    assert_untouched(ours, most=2 if case.kind == "asha" else 1)
