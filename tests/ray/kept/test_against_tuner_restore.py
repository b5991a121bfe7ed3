"""The end of a restore equals the end of `Tuner.restore` on a copy of the same experiment.

Statuses x flags x kinds of trainable, on local disk and on a real S3 server. What Ray does is never
written down here: it is asked, on a copy. Only what differs from run to run (times, pids) is left out.
More of the same: slow/test_more_against_tuner_restore.py.
"""

import pytest

from airflow_tune_restore.experiments import layout
from tests.support.ray.compared import RESUMED, Case, compare, restore_both

CASES = [
    Case("errored, no flag", "errored"),
    Case("errored, resumed", "errored", RESUMED),
    Case("errored, restarted", "errored", {"restart_errored": True}),
    Case("errored, both", "errored", {"resume_errored": True, "restart_errored": True}),
    Case("errored, fails again", "errored", RESUMED, healed=False),
    Case("killed, resumed", "killed"),
    Case("killed, not resumed", "killed", {"resume_unfinished": False}),
    Case("errored on S3", "errored", RESUMED, on_s3=True),
    Case("killed on S3", "killed", on_s3=True),
    Case("class", "class", RESUMED),
    Case("registered", "registered", RESUMED),
    Case("with_parameters", "with_parameters", RESUMED),
    Case("with_resources", "with_resources", RESUMED),
    Case("trainer", "trainer", RESUMED),
    Case("asha, one run of all", "asha", RESUMED),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_restore_ends_as_tuner_restore_ends(hosts, failed_experiments, tmp_path, case, request):
    s3 = request.getfixturevalue("s3") if case.on_s3 else None
    end = restore_both(hosts, case, failed_experiments[case.kind], tmp_path, s3)
    assert bool(end.summary and end.summary.failed) == (not case.healed)
    compare(end.ours, end.theirs, case)
    # nothing Ray wrote was touched, and at most one state file was added by each commit
    assert {name: end.after[name] for name in end.before} == end.before
    added = set(end.after) - set(end.before)
    # and beside it the state of the searcher, if there is one
    assert len(added) <= (2 if case.kind == "asha" else 1)
    assert all(layout.is_committed(name) for name in added)
