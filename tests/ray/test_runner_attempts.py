"""Attempts that are stopped, killed or overtaken, and what the next one makes of it."""

import contextlib
import os
import signal

from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.lease_objects import times_held
from airflow_tune_restore.protocol.request import EXIT_FENCED, EXIT_FINISHED, EXIT_INTERRUPTED
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.support.experiments.failed import Gate
from tests.support.ray.real_restore import RESTORE_ID, Restoring, wrote
from tests.support.waiting import eventually

EVERY = [1, 2, 3, 4, 5, 6]
RESTARTED = ResumeFlags.from_flags(restart_errored=True)


def test_a_stopped_attempt_saves_a_snapshot_and_the_next_goes_on_without_gap_or_double(
    copied, gate
):
    restoring = Restoring(copied("errored"), "errored", env=gate.env)
    request, process, seen = restoring.run_until(4)
    os.kill(process.pid, signal.SIGTERM)
    for line in process.lines():
        seen.append(line)
        if "Stopping: saving" in line:
            break
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)  # a second one does not spoil the snapshot
    ran = restoring.finish(request, process, tuple(seen))
    # the second signal may end the process, but only after its outcome was recorded
    assert ran.code in (EXIT_INTERRUPTED, -signal.SIGTERM), ran.output
    assert (ran.outcome.result, ran.outcome.error_type) == ("interrupted", "Interrupted"), (
        ran.output
    )
    trial, _ = restoring.snapshot()
    assert trial["status"] not in ("TERMINATED", "ERROR")
    assert ran.outcome.iteration == 4
    assert restoring.iterations() == EVERY[:4]

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    # the stop may come between a result and the checkpoint reported with it
    assert ran.outcome.metrics["started_from"] in (3, 4)
    assert _members(process.pid) == []


def test_a_killed_attempt_is_followed_by_one_that_loses_and_doubles_nothing(copied, tmp_path):
    directory = copied("sparse")  # checkpoints at 2, 4 and 6 only
    gate = Gate(tmp_path / "gate-is-open", before=6)
    restoring = Restoring(directory, "sparse", env=gate.env, trim_results=True)
    _, process, _ = restoring.run_until(5)
    eventually(lambda: wrote(restoring, 5))
    for pid in (process.pid, *_members(process.pid)):  # its Ray must not outlive it by a moment
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() < 0
    assert AttemptRecords(restoring.store, RESTORE_ID, restoring.trial.trial_id).outcome(1) is None
    trial_dir = directory / restoring.trial.trial_dir
    written = {path: path.read_bytes() for path in trial_dir.glob("checkpoint_*/*")}
    ((claimed, seen),) = times_held(restoring.store.list_dir(layout.LEASE))
    files = [entry for entry in restoring.store.list_dir() if not entry.is_dir]
    in_root = {entry.name: entry.modified_at for entry in files if entry.modified_at > claimed}
    assert list(in_root) == [
        layout.STORAGE_MARKER
    ]  # the next restore does not take it for a driver's
    assert in_root[layout.STORAGE_MARKER] <= seen

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    assert ran.outcome.metrics["started_from"] in (2, 4)
    assert all(path.read_bytes() == body for path, body in written.items())


def test_an_attempt_ends_when_a_newer_one_is_claimed_and_writes_nothing_more(copied, gate):
    directory = copied("errored")
    restoring = Restoring(directory, "errored", env=gate.env)
    request, process, seen = restoring.run_until(4)
    trial_dir = directory / restoring.trial.trial_dir
    eventually(
        lambda: wrote(restoring, 4) and (trial_dir / "checkpoint_000003/state.json").exists()
    )
    restoring.claim()
    before = written_by_others(directory, request)
    ran = restoring.finish(request, process, tuple(seen))
    assert ran.code == EXIT_FENCED, ran.output
    assert ran.outcome is None
    assert "attempt 2 has been started" in ran.output
    gate.open()  # whoever were left would train now
    assert _members(process.pid) == []
    assert written_by_others(directory, request) == before
    assert restoring.iterations() == EVERY[:4]


def written_by_others(directory, request):
    """Return all that is not an attempt's alone.

    It hears of the newer one with its next beat. Until then it beats, renews the lease it still holds,
    and saves in a directory of its own, where no other attempt writes.
    """
    own = layout.attempt_dir(request.restore_id, request.trial_id, request.attempt)
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
        and not path.is_relative_to(directory / own)
        and not (path.parent == directory / layout.LEASE and "heartbeat" in path.name)
    }


def test_a_run_that_breaks_off_at_the_first_result_ends_at_once_and_names_the_cause(
    copied, tmp_path
):
    """Once its Ray is gone, nothing may ask Ray for the results of a trial that has none."""
    record = tmp_path / "not" / "there"  # the experiment's callback writes it at each result
    env = {"TUNE_TEST_RECORD": str(record)}
    restoring = Restoring(copied("extras"), "extras", flags=RESTARTED, env=env)
    ran = restoring.run()
    assert ran.code == EXIT_INTERRUPTED, ran.output
    assert "Connecting to existing Ray" not in ran.output
    assert ran.outcome.error_type == "FileNotFoundError"
    assert ran.outcome.error.startswith("[Errno 2] No such file or directory")
    assert (
        " (--ignore-tuner restores without the callbacks, stopper and searcher" in ran.outcome.error
    )
    assert "; raised in on_trial_result, " in ran.outcome.error
    assert "tests/trainables.py:" in ran.outcome.error
    assert ran.outcome.cause == "trainable"
    assert ran.outcome.place.startswith("tests/trainables.py:")
    assert ran.outcome.place.endswith(" in on_trial_result")
    assert ran.outcome.metrics == {}
