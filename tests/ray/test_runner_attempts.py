"""Attempts that are stopped, killed or overtaken, and what the next one makes of it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore import lease
from airflow_tune_restore.restore.attempts import read_outcome
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.request import EXIT_FENCED, EXIT_FINISHED, EXIT_INTERRUPTED
from tests.support import ROOT
from tests.support.experiments.failed import Gate, environment
from tests.support.ray.real_restore import RESTORE_ID, Restoring

EVERY = [1, 2, 3, 4, 5, 6]


def members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = path.joinpath("stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(state[3]) == session and state[0] != "Z":
            found.append(int(path.name))
    return found


def eventually(condition, seconds: float = 180.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def wrote(restoring: Restoring, iteration: int) -> bool:
    """Whether the last row of result.json is of an iteration; it may just be written anew."""
    try:
        return restoring.iterations()[-1] == iteration
    except (IndexError, ValueError):
        return False


def test_a_stopped_attempt_saves_a_snapshot_and_the_next_goes_on_without_gap_or_double(
    copied, gate
):
    restoring = Restoring(copied("errored"), "errored", env=gate.env)
    request, process, seen = restoring.run_until(4)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
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
    assert members(process.pid) == []


def test_a_killed_attempt_is_followed_by_one_that_loses_and_doubles_nothing(copied, tmp_path):
    directory = copied("sparse")  # checkpoints at 2, 4 and 6 only
    gate = Gate(tmp_path / "gate-is-open", before=6)
    restoring = Restoring(directory, "sparse", env=gate.env, trim_results=True)
    _, process, _ = restoring.run_until(5)
    assert eventually(lambda: wrote(restoring, 5))
    for pid in members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() < 0
    assert read_outcome(restoring.store, RESTORE_ID, restoring.trial.trial_id, 1) is None
    trial_dir = directory / restoring.trial.trial_dir
    written = {path: path.read_bytes() for path in trial_dir.glob("checkpoint_*/*")}

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    assert ran.outcome.metrics["started_from"] in (2, 4)
    assert all(path.read_bytes() == body for path, body in written.items())


def test_a_restarted_trial_keeps_its_new_id_and_directory_when_it_is_attempted_again(
    copied, tmp_path
):
    directory = copied("errored")
    before = sorted(path.name for path in directory.iterdir() if path.is_dir())
    flags = ResumeFlags.from_flags(restart_errored=True)
    gate = Gate(tmp_path / "gate-is-open", before=3)
    restoring = Restoring(directory, "errored", env=gate.env, flags=flags)
    new_id = restoring.trial.new_trial_id
    request, process, seen = restoring.run_until(2)
    process.stop()
    ran = restoring.finish(request, process, tuple(seen))
    assert ran.code == EXIT_INTERRUPTED, ran.output
    assert ran.outcome.final_trial_id == new_id

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert ran.outcome.final_trial_id == new_id
    assert ran.outcome.metrics["started_from"] in (1, 2)
    trial, run = restoring.snapshot(2)
    assert (trial["trial_id"], trial["status"]) == (new_id, "TERMINATED")
    assert run["num_failures"] == 0
    after = sorted(path.name for path in directory.iterdir() if path.is_dir())
    assert set(after) - set(before) == {trial["relative_logdir"], layout.ROOT}
    assert restoring.iterations(trial["relative_logdir"]) == EVERY
    assert restoring.csv_iterations(trial["relative_logdir"]) == EVERY
    assert restoring.iterations() == [1, 2, 3]  # the old trial's


def test_an_attempt_ends_when_a_newer_one_is_claimed_and_writes_nothing_more(copied, gate):
    directory = copied("errored")
    restoring = Restoring(directory, "errored", env=gate.env)
    request, process, seen = restoring.run_until(4)
    restoring.claim()
    ran = restoring.finish(request, process, tuple(seen))
    assert ran.code == EXIT_FENCED, ran.output
    assert ran.outcome is None
    assert members(process.pid) == []
    assert "attempt 2 has been started" in ran.output
    written = sorted((p, p.stat().st_mtime_ns) for p in directory.rglob("*") if p.is_file())
    time.sleep(3)
    assert written == sorted((p, p.stat().st_mtime_ns) for p in directory.rglob("*") if p.is_file())


def test_an_attempt_that_is_not_the_newest_does_not_begin(copied):
    restoring = Restoring(copied("errored"), "errored")
    first = restoring.claim()
    restoring.claim()
    ran = restoring.finish(first, restoring.launcher.start(first))
    assert ran.code == EXIT_FENCED, ran.output
    assert ran.outcome is None
    assert restoring.iterations() == [1, 2, 3]


def test_an_attempt_without_the_lease_does_not_begin(copied):
    restoring = Restoring(copied("errored"), "errored")
    lease.release(restoring.store, lease.check_held(restoring.store, RESTORE_ID))
    ran = restoring.run()
    assert ran.code == EXIT_FENCED, ran.output
    assert ran.outcome is None
    assert restoring.iterations() == [1, 2, 3]


def test_an_attempt_ends_with_a_snapshot_when_whoever_started_it_is_killed(copied, gate):
    directory = copied("errored")
    restoring = Restoring(directory, "errored")
    request = restoring.claim()
    code = (
        "import sys, time\n"
        "from airflow_tune_restore.launch.local import LocalLauncher\n"
        "from airflow_tune_restore.restore.request import RunnerRequest\n"
        "request = RunnerRequest.from_json(sys.argv[1])\n"
        "runner = LocalLauncher(pythonpath=[sys.argv[2]]).start(request)\n"
        "print(runner.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, request.to_json().decode(), ROOT.as_posix()],
        env=environment(TUNE_TEST_HEALED="1", **gate.env),
        stdout=subprocess.PIPE,
        text=True,
    )
    runner = int(parent.stdout.readline())
    assert eventually(lambda: wrote(restoring, 4))
    parent.kill()
    parent.wait()
    assert eventually(lambda: members(runner) == [])
    outcome = read_outcome(restoring.store, RESTORE_ID, request.trial_id, 1)
    assert outcome is not None
    assert (outcome.result, outcome.iteration) == ("interrupted", 4)
    assert restoring.iterations() == EVERY[:4]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainable": "tests.trainables:other"}, "the experiment was made with 'counting'"),
        ({"trainable": "tests.trainables:missing"}, "has no 'missing'"),
        ({"trainable": "tests.nowhere:train"}, "there is no module 'tests.nowhere' here"),
        ({"trainable": "not_registered"}, "is not registered with Tune"),
        ({"param_space": "tests.trainables:UNFITTING_PARAM_SPACE"}, "Invalid `param_space`"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_starts(copied, changes, sentence):
    directory = copied("errored")
    restoring = Restoring(directory, "errored")
    trial_dir = directory / restoring.trial.trial_dir
    before = sorted((p, p.stat().st_mtime_ns) for p in trial_dir.rglob("*"))
    ran = restoring.run(**changes)
    assert ran.code == 2, ran.output
    assert ran.outcome.result == "refused"
    assert sentence in ran.outcome.error
    assert "Traceback" not in ran.output
    assert "Started a local Ray" not in ran.output
    assert before == sorted((p, p.stat().st_mtime_ns) for p in trial_dir.rglob("*"))


def test_check_says_beforehand_whether_a_trainable_fits(copied):
    directory = copied("errored")
    restoring = Restoring(directory, "errored")
    asked = {"experiment": directory.as_posix(), "trainable_name": "counting"}
    restoring.launcher.check(trainable="tests.trainables:counting", **asked)
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        restoring.launcher.check(trainable="tests.trainables:other", **asked)
    with pytest.raises(InvalidInputError, match="Invalid `param_space`"):
        restoring.launcher.check(
            trainable="tests.trainables:counting",
            param_space="tests.trainables:UNFITTING_PARAM_SPACE",
            **asked,
        )


def test_a_damaged_seed_fails_closed(copied):
    """Ray alone would log "Restarting experiment." and run a trial with an empty config."""
    directory = copied("errored")
    restoring = Restoring(directory, "errored")
    restoring.store.put(layout.seed_key(RESTORE_ID, restoring.trial.trial_id), b'{"trial_data": [')
    ran = restoring.run()
    assert ran.code == EXIT_INTERRUPTED, ran.output
    assert "could not be restored" in ran.outcome.error
    assert ran.outcome.status == ""
    assert restoring.iterations() == [1, 2, 3]
    assert len(list(directory.glob("experiment_state-*.json"))) == 1
