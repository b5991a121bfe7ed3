"""The script of a sweep as a real process: it never outlives the lease under which it writes."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import (
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.sweep import start_sweep
from airflow_tune_restore.runner.script import Script, script_environment
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.waiting import eventually

WRITES = "while :; do date +%N > tick; sleep 0.05; done"
SAVES = "trap 'echo saved > saved; exit 0' INT; " + WRITES


class Running:
    """A sweep whose script runs in a directory of its own."""

    def __init__(self, directory, entrypoint, ttl_seconds=4.0, **settings):
        self.directory = directory
        self.store = open_store(str(directory / "exp"))
        self.plan = start_sweep(self.store, "night", holder="test", ttl_seconds=ttl_seconds)
        given = {"trainable": "a:b", "entrypoint": f"cd {directory} && {entrypoint}", **settings}
        self.request = claim_attempt(
            self.store, self.plan, layout.WHOLE_EXPERIMENT, RunnerSettings(**given)
        )
        self.launcher = LocalLauncher(pythonpath=[str(ROOT)])

    def start(self):
        process = self.launcher.start(self.request)
        eventually((self.directory / "tick").exists)
        return process

    def group(self):
        """Return the process group of the script."""
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (path / "cwd").resolve() == self.directory.resolve():
                    found.add(os.getpgid(int(path.name)))
        return found

    def ended(self, process):
        output = "\n".join(process.lines())
        return process.wait(), AttemptRecords.of(self.store, self.request).outcome(1), output


@pytest.fixture
def running(tmp_path):
    def start(entrypoint, **options):
        (tmp_path / "exp").mkdir()
        return Running(tmp_path, entrypoint, **options)

    return start


def stands_still(running):
    assert running.group() == set()
    return True


@pytest.mark.parametrize(
    ("command", "code", "result", "error"),
    [
        ("true", EXIT_FINISHED, "finished", ""),
        ("exit 7", EXIT_FAILED, "failed", "the exit code of the script was 7"),
        ("kill -9 $$", EXIT_FAILED, "failed", "SIGKILL ended the script"),
    ],
)
def test_the_exit_code_of_the_script_is_the_outcome(running, command, code, result, error):
    sweep = running(command)
    ended, outcome, output = sweep.ended(sweep.launcher.start(sweep.request))
    assert (ended, outcome.result, outcome.describe_error()) == (code, result, error), output


def test_it_gets_its_place_the_runners_python_and_the_signals_of_a_terminal(running, tmp_path):
    names = "os.environ['TUNE_RESTORE_STORAGE_PATH'], os.environ['TUNE_RESTORE_NAME']"
    masks = "signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT).__name__"
    own = "'TUNE_DISABLE_SIGINT_HANDLER' in os.environ, 'ray' in sys.modules"
    sweep = running(
        f'python -c "import os, signal, sys; print(sys.executable, {names}, {masks}, {own})"'
    )
    _, _, output = sweep.ended(sweep.launcher.start(sweep.request))
    place = f"{sys.executable} {tmp_path} exp set() default_int_handler False False"
    assert place in output


@pytest.mark.parametrize(
    ("trainable", "code", "words"),
    [
        ("tests.trainables:no_such", EXIT_REFUSED, "no_such"),
        ("tests.trainables:counting", EXIT_FINISHED, ""),
    ],
)
def test_a_runner_that_has_the_code_checks_the_trainable_before_the_script(
    running, trainable, code, words
):
    sweep = running("touch tick", trainable=trainable, checks=True)
    ended, outcome, output = sweep.ended(sweep.launcher.start(sweep.request))
    assert ended == code, output
    assert words in outcome.error
    assert (sweep.directory / "tick").exists() == (code == EXIT_FINISHED)


def test_a_stopped_script_gets_one_sigint_and_may_save(running):
    sweep = running(SAVES)
    process = sweep.start()
    os.kill(process.pid, signal.SIGTERM)
    code, outcome, output = sweep.ended(process)
    assert (code, outcome.result) == (EXIT_INTERRUPTED, "interrupted"), output
    assert outcome.error == "the script was stopped; the exit code of the script was 0"
    assert (sweep.directory / "saved").exists()
    assert _members(process.pid) == []


def test_processes_that_the_script_leaves_behind_are_ended(running):
    sweep = running(f"({WRITES}) & eventually=1; sleep 0.3; exit 0")
    process = sweep.start()
    code, _, output = sweep.ended(process)
    assert code == EXIT_FINISHED, output
    assert stands_still(sweep)


def test_a_daemon_that_holds_the_output_does_not_hold_the_task(running, tmp_path):
    """As a server that the script has started: it has a session of its own, and no parent any more."""
    daemon = tmp_path / "daemon.py"
    daemon.write_text(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        open('daemon.pid', 'w').write(str(os.getpid()))\n"
        "        open('tick', 'w').close()\n"
        "        time.sleep(3600)\n"
        "    os._exit(0)\n"
    )
    sweep = running("python daemon.py; while [ ! -e tick ]; do sleep 0.05; done; echo ends")
    process = sweep.start()
    try:
        code, _, output = sweep.ended(process)
        assert (code, "ends" in output) == (EXIT_FINISHED, True), output
    finally:
        os.kill(int((tmp_path / "daemon.pid").read_text()), signal.SIGKILL)


def test_a_script_whose_worker_has_died_is_stopped_and_may_save(running, tmp_path):
    sweep = running(SAVES)
    code = (
        "import sys, time\n"
        "from airflow_tune_restore.launch.local import LocalLauncher\n"
        "from airflow_tune_restore.protocol.attempts import AttemptRecords\n"
        "from airflow_tune_restore.storage.fs import open_store\n"
        f"records = AttemptRecords(open_store({str(tmp_path / 'exp')!r}), "
        f"{sweep.plan.restore_id!r}, '*')\n"
        "LocalLauncher().start(records.request(1))\n"
        "time.sleep(3600)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    eventually((tmp_path / "tick").exists)
    worker.kill()
    worker.wait()
    records = AttemptRecords.of(sweep.store, sweep.request)
    outcome = eventually(lambda: records.outcome(1))
    assert outcome.result == "interrupted"
    assert (tmp_path / "saved").exists()
    assert stands_still(sweep)


def test_a_script_dies_at_once_with_a_runner_that_is_killed(running):
    """As a Ray job or the kernel kills it alone: nothing else would end the script."""
    sweep = running(WRITES)
    key = layout.request_key(sweep.request.restore_id, layout.WHOLE_EXPERIMENT, 1)
    # not watched, as by the local launcher
    command = [sys.executable, "-m", "airflow_tune_restore.runner", "run"]
    command += ["--experiment", sweep.request.experiment, "--request", key]
    runner = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    eventually((sweep.directory / "tick").exists)
    (group,) = sweep.group()
    assert group != runner.pid
    runner.kill()
    runner.wait()
    eventually(lambda: sweep.group() == set())


def test_a_fenced_runner_kills_its_script_before_it_ends(running):
    sweep = running(f"trap '' INT TERM; {WRITES}")
    process = sweep.start()
    lease.release(sweep.store, lease.check_held(sweep.store, sweep.plan.restore_id))
    code, outcome, output = sweep.ended(process)
    assert (code, outcome) == (EXIT_FENCED, None), output
    assert stands_still(sweep)


def test_an_experiment_that_has_a_state_is_never_started_again(running):
    sweep = running("touch started")
    sweep.store.put(STATE_NAME, make_state([make_row("hung", status="RUNNING")]))
    code, outcome, output = sweep.ended(sweep.launcher.start(sweep.request))
    assert (code, outcome.result) == (EXIT_INTERRUPTED, "interrupted"), output
    assert "is restored and never started again" in outcome.error
    assert not (sweep.directory / "started").exists()


def test_a_script_that_was_killed_before_it_started_does_not_start(tmp_path):
    sweep = Running(tmp_path, "touch started")
    script = Script(sweep.request)
    script.kill()
    script.start()
    assert script.wait() is None
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("experiment", "place"), [("/exp", "/"), ("/a/exp", "/a"), ("s3://b/exp", "s3://b")]
)
def test_a_script_finds_the_place_above_its_experiment(experiment, place):
    found = script_environment(SimpleNamespace(experiment=experiment, address=None), os.environ)
    assert (found["TUNE_RESTORE_STORAGE_PATH"], found["TUNE_RESTORE_NAME"]) == (place, "exp")
