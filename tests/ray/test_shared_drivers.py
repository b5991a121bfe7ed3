"""A driver that trials share is stopped, and another one follows it."""

import os
import signal

from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_INTERRUPTED
from tests.support.ray.real_restore import RESTORE_ID
from tests.support.ray.sharing import Sharing, multiply
from tests.support.waiting import eventually


def test_a_stopped_driver_saves_what_it_runs_and_leaves_the_rest_to_the_next(copied, gate):
    directory = copied("errored")
    multiply(directory, 5)
    sharing = Sharing(directory, "errored", env=gate.env)
    sharing.hand_over(*sharing.trial_ids)
    request, driver = sharing.start(concurrent=3)
    eventually(lambda: len(sharing.reached(4)) == 2)  # as many as the Ray has CPUs
    os.kill(driver.pid, signal.SIGTERM)
    ran = sharing.finish(request, driver)

    # the signal may end the process twice, but only after its outcome was recorded
    assert ran.code in (EXIT_INTERRUPTED, -signal.SIGTERM), ran.output
    assert (ran.outcome.result, ran.outcome.error_type) == ("interrupted", "Interrupted")
    begun = [t for t in sharing.trial_ids if sharing.has_begun(t)]
    assert len(begun) == 3
    for trial_id in begun:
        outcome = sharing.outcome(trial_id)
        assert (outcome.result, outcome.error_type) == ("interrupted", "Interrupted")
        assert outcome.error == "stopped; a snapshot was saved"
        sharing.trial = sharing.plan.trial(trial_id)
        trial, _ = sharing.snapshot()
        assert trial["status"] not in ("TERMINATED", "ERROR")
        assert outcome.iteration == (4 if trial_id in sharing.reached(4) else 3)
    rest = set(sharing.trial_ids) - set(begun)
    assert {attempt.trial_id for attempt in sharing.desk.read().to_run} == rest
    assert not any(sharing.exists(layout.snapshot_key(RESTORE_ID, t, 1)) for t in rest)
    assert _members(driver.pid) == []

    gate.open()
    ran = sharing.run()
    assert (ran.request.attempt, ran.code) == (2, EXIT_FINISHED), ran.output
    assert {t for t in sharing.trial_ids if sharing.outcome(t).result == "finished"} == rest
    assert sharing.desk.read().to_run == []
