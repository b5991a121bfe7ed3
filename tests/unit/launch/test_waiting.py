"""A check whose process runs the first attempt, with a small program in the place of the runner."""

import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol.check import CheckAnswer, CheckRequest, ExperimentToCheck
from airflow_tune_restore.protocol.request import RunnerRequest
from tests.support.waiting import eventually

ASKED = CheckRequest(
    trainable="m:f", experiments=[ExperimentToCheck(experiment="/e", trainable_name="f")]
)
REQUEST = RunnerRequest(
    experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:f", trainable_name="f",
    action="resume",
)  # fmt: skip
ANSWER = CheckAnswer(experiment="/e").to_line()
PROGRAM = f"""
import json, os, sys, time
def check():
    print({ANSWER!r}, flush=True)
def run(arguments):
    print("ran", os.getpid(), json.dumps(arguments), flush=True)
    print("and said", file=sys.stderr, flush=True)
    sys.exit(3)
"""
MAIN = """
command = sys.argv[3:]
log = open(os.path.dirname(os.path.abspath(__file__)) + "/started", "a")
print(os.getpid(), *command, file=log, flush=True)
if command[0] == "run":
    run(command)
sys.stdin.read()
check()
if "--then-run" in command:
    arguments, output = map(int, command[-2:])
    os.write(output, b"\\n")
    line = os.fdopen(arguments).readline()
    if not line:
        sys.exit(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    run(json.loads(line))
"""


class Started:
    """A launcher whose interpreter runs a small program, and the command lines that it has got."""

    def __init__(self, directory: Path, script: str):
        program = directory / "program.py"
        program.write_text(PROGRAM + script + MAIN)
        python = directory / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
        python.chmod(0o755)
        self.launcher = LocalLauncher(python=python.as_posix())
        self._log = directory / "started"

    def check(self, request: CheckRequest = ASKED, seconds: float = 60) -> list[CheckAnswer]:
        return self.launcher.check(request, timedelta(seconds=seconds))

    @property
    def commands(self) -> list[tuple[int, list[str]]]:
        lines = [line.split() for line in self._log.read_text().splitlines()]
        return [(int(pid), words) for pid, *words in lines]

    @property
    def pids(self) -> list[int]:
        return [pid for pid, _ in self.commands]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Makes one with more lines of its program, within the block that keeps a check."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "homes"))
    (tmp_path / "homes").mkdir()
    with ExitStack() as stack:

        def make(script: str = "") -> Started:
            made = Started(tmp_path, script)
            stack.enter_context(made.launcher)
            return made

        yield make
    assert list((tmp_path / "homes").iterdir()) == []  # every home is removed


def test_the_process_that_has_checked_runs_the_first_attempt(started):
    made = started()
    assert made.check() == [CheckAnswer(experiment="/e")]
    run = made.launcher.start(REQUEST)
    first, second = run.lines()
    assert (run.wait(), second) == (3, "and said")
    _, pid, arguments = first.split(maxsplit=2)
    assert [int(pid)] == made.pids == [run.pid]
    key = ".tune_restore/r/trials/t/attempts/000001/request.json"
    assert json.loads(arguments) == [
        "run", "--experiment", "/e", "--request", key, "--parent-pid", str(os.getpid())
    ]  # fmt: skip
    assert made.launcher.find(REQUEST) is run


def test_the_second_attempt_gets_a_process_of_its_own(started):
    made = started()
    made.check()
    runs = [made.launcher.start(replace(REQUEST, attempt=number)) for number in (1, 2)]
    assert [run.wait() for run in runs] == [3, 3]
    assert [words[0] for _, words in made.commands] == ["check", "run"]


def test_what_the_users_code_said_at_its_import_is_in_the_output_of_the_run(started):
    made = started("print('loading weights'); print('old numpy', file=sys.stderr)\n")
    made.check()
    lines = list(made.launcher.start(REQUEST).lines())
    assert lines[:2] == ["loading weights", "old numpy"]
    assert lines[2].startswith("ran ")
    assert ANSWER not in lines


def test_a_check_that_no_attempt_follows_is_ended_with_all_it_started(tmp_path):
    made = Started(tmp_path, "import subprocess; subprocess.Popen(['sleep', '3600'])\n")
    with made.launcher:
        made.check()
        (pid,) = made.pids
        assert len(_members(pid)) == 2
    assert not _members(pid)


def test_without_the_block_no_process_stays(tmp_path):
    made = Started(tmp_path, "")
    assert made.check() == [CheckAnswer(experiment="/e")]
    ((pid, words),) = made.commands
    assert words == ["check"]
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "asked",
    [
        replace(ASKED, param_space="m:space"),
        replace(ASKED, experiments=[replace(ASKED.experiments[0], search_alg="m:search")]),
    ],
)
def test_a_check_that_calls_functions_of_the_user_leaves_nothing_to_the_run(started, asked):
    made = started()
    made.check(asked)
    assert made.commands[0][1] == ["check"]
    made.launcher.start(REQUEST).wait()
    assert [words[0] for _, words in made.commands] == ["check", "run"]


def test_a_check_that_was_killed_while_it_waited_is_replaced(started):
    made = started()
    made.check()
    (pid,) = made.pids
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not _members(pid))
    assert made.launcher.start(REQUEST).wait() == 3
    assert [words[0] for _, words in made.commands] == ["check", "run"]


def test_an_interpreter_that_keeps_no_process_has_checked_all_the_same(started):
    made = started("sys.argv = [a for a in sys.argv if not a.isdigit() and a != '--then-run']\n")
    assert made.check() == [CheckAnswer(experiment="/e")]
    made.launcher.start(REQUEST).wait()
    assert len(made.commands) == 2


def test_a_check_that_refuses_ends(started):
    made = started("def check(): print('error: m has no f.', file=sys.stderr); sys.exit(2)\n")
    with pytest.raises(InvalidInputError, match=r"^m has no f\.$"):
        made.check()
    assert not _members(made.pids[0])


def test_a_check_that_takes_too_long_is_killed_with_all_it_started(started):
    made = started(
        "import subprocess; subprocess.Popen(['sleep', '3600'])\ndef check(): time.sleep(3600)\n"
    )
    with pytest.raises(RunnerError, match=r"was stopped after 1\.5 s"):
        made.check(seconds=1.5)
    assert not _members(made.pids[0])


def test_ctrl_c_during_a_check_ends_it(started, monkeypatch):
    made = started("def check(): os.kill(os.getppid(), 2); time.sleep(3600)\n")
    with pytest.raises(KeyboardInterrupt):
        made.check()
    assert not _members(made.pids[0])


def test_a_runner_that_waited_is_stopped_as_every_other(started):
    made = started(
        "import signal\n"
        "def run(_):\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "    print('runs', flush=True)\n"
        "    time.sleep(3600)\n"
    )
    made.check()
    run = made.launcher.start(REQUEST)
    assert next(run.lines()) == "runs"
    run.stop()
    assert run.wait() == 5
