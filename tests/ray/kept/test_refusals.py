"""What a runner does not begin, or not go on with: the reason is said, and nothing is written."""

import pytest

from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.request import EXIT_FENCED, EXIT_INTERRUPTED
from tests.support.ray.real_restore import RESTORE_ID, Restoring

EVERY = [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainable": "tests.trainables:other"}, "the experiment was made with 'counting'"),
        ({"trainable": "tests.trainables:missing"}, "has no 'missing'"),
        ({"trainable": "tests.nowhere:train"}, "module 'tests.nowhere' does not exist here"),
        ({"trainable": "not_registered"}, "is not registered with Tune"),
        ({"param_space": "tests.trainables:UNFITTING_PARAM_SPACE"}, "Invalid `param_space`"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_starts(hosts, copied, changes, sentence):
    directory = copied("errored")
    restoring = Restoring(directory, "errored", hosts=hosts)
    trial_dir = directory / restoring.trial.trial_dir
    before = sorted((p, p.stat().st_mtime_ns) for p in trial_dir.rglob("*"))
    ran = restoring.run(**changes)
    assert ran.code == 2, ran.output
    assert ran.outcome.result == "refused"
    assert sentence in ran.outcome.error
    assert "Traceback" not in ran.output
    assert "Connecting to existing Ray" not in ran.output
    assert before == sorted((p, p.stat().st_mtime_ns) for p in trial_dir.rglob("*"))


def test_a_damaged_seed_fails_closed(hosts, copied):
    """Ray alone would log "Restarting experiment." and run a trial with an empty config."""
    directory = copied("errored")
    restoring = Restoring(directory, "errored", hosts=hosts)
    restoring.store.put(layout.seed_key(RESTORE_ID, restoring.trial.trial_id), b'{"trial_data": [')
    ran = restoring.run()
    assert ran.code == EXIT_INTERRUPTED, ran.output
    assert "could not be restored" in ran.outcome.error
    assert ran.outcome.status == ""
    assert restoring.iterations() == [1, 2, 3]
    assert len(list(directory.glob("experiment_state-*.json"))) == 1


def test_an_attempt_that_is_not_the_newest_does_not_begin(hosts, copied):
    restoring = Restoring(copied("errored"), "errored", hosts=hosts)
    first = restoring.claim()
    restoring.claim()
    ran = restoring.finish(first, restoring.launcher.start(first))
    assert ran.code == EXIT_FENCED, ran.output
    assert ran.outcome is None
    assert restoring.iterations() == [1, 2, 3]


def test_an_attempt_without_the_lease_does_not_begin(hosts, copied):
    restoring = Restoring(copied("errored"), "errored", hosts=hosts)
    lease.release(restoring.store, lease.check_held(restoring.store, RESTORE_ID))
    ran = restoring.run()
    assert ran.code == EXIT_FENCED, ran.output
    assert ran.outcome is None
    assert restoring.iterations() == [1, 2, 3]
