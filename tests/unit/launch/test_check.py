"""The check of a trainable by a process, with a small program in the place of the runner."""

import os
import signal
import sys
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError, TrainableMisfitError
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.protocol.check import (
    STAGE_PREFIX,
    CheckAnswer,
    CheckRequest,
    ExperimentToCheck,
    MatchedBy,
    Problem,
)

REQUEST = CheckRequest(
    trainable="m:f",
    imports=["a", "b"],
    experiments=[
        ExperimentToCheck(experiment="/one", trainable_name="f"),
        ExperimentToCheck(experiment="/two", trainable_name="f", ignore_tuner=True),
    ],
)
ONE = CheckAnswer(experiment="/one", matched_by=MatchedBy.MODULE)
TWO = CheckAnswer(experiment="/two", problem=Problem.MISFIT, message="It is another one.")


@pytest.fixture
def check(tmp_path):
    """Asks a given script instead of the runner."""

    def ask(script: str, seconds: float = 60) -> list[CheckAnswer]:
        program = tmp_path / "program.py"
        program.write_text(f"import sys, time\n{script}")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
        python.chmod(0o755)
        launcher = LocalLauncher(python=python.as_posix())
        return launcher.check(REQUEST, timedelta(seconds=seconds))

    return ask


def prints(*lines: str) -> str:
    return "".join(f"print({line!r}, flush=True)\n" for line in lines)


def test_one_process_gets_the_request_and_answers_for_each_experiment(check, tmp_path):
    seen = tmp_path / "seen"
    script = f"open({str(seen)!r}, 'a').write(sys.stdin.read())\n"
    noise = "a line that is left open " + TWO.to_line()
    answers = check(script + prints("noise", noise, ONE.to_line(), "more noise"))
    assert answers == [ONE, TWO]
    assert CheckRequest.from_json(seen.read_bytes()) == REQUEST


def test_an_answer_is_an_error_of_its_kind():
    assert ONE.error() is None
    kinds = {
        Problem.MISFIT: TrainableMisfitError,
        Problem.REFUSED: InvalidInputError,
        Problem.FAILED: RunnerError,
    }
    for problem, kind in kinds.items():
        error = CheckAnswer(experiment="/e", problem=problem, message="no").error()
        assert (type(error), str(error)) == (kind, "no")


def test_an_error_of_the_trainable_itself_is_one_error_for_all(check):
    refusal = "print('noise\\nerror: m has no f.\\nmore', file=sys.stderr); sys.exit(2)"
    with pytest.raises(InvalidInputError, match=r"^m has no f\.$"):
        check(refusal)


def test_a_process_that_breaks_off_fails_the_experiments_that_it_had_not_checked(check):
    stage = f"{STAGE_PREFIX}checking experiment 2 of 2, /two"
    one, two = check(prints(ONE.to_line(), stage) + "sys.exit('boom')")
    assert one == ONE
    assert (two.experiment, two.problem) == ("/two", Problem.FAILED)
    assert "exited with code 1, while it was checking experiment 2 of 2, /two. boom" in two.message


@pytest.mark.parametrize("end", ["sys.exit('boom')", "pass", "sys.exit(2)"])
def test_a_process_without_any_answer_is_not_a_verdict(check, end):
    with pytest.raises(RunnerError, match=r"Could not check trainable m:f: .*exited with code"):
        check(end)


@pytest.mark.parametrize("stage", ["importing Ray", "importing m"])
def test_a_check_that_takes_too_long_names_its_stage_and_the_limit_and_blames_nobody(check, stage):
    with pytest.raises(RunnerError) as stopped:
        check(prints(f"{STAGE_PREFIX}{stage}") + "time.sleep(3600)", seconds=1.5)
    assert str(stopped.value) == (
        f"The check of trainable m:f was stopped after 1.5 s, while it was {stage}. A busy machine or a "
        "slow disk may need more time: set check_timeout=3 (--check-timeout 3)."
    )


def test_an_interpreter_that_takes_too_long_to_start_is_named(check):
    with pytest.raises(
        RunnerError, match=r"after 1\.5 s, while it was starting .*/python\. A busy"
    ):
        check("time.sleep(3600)", seconds=1.5)


def test_what_was_checked_in_time_counts(check):
    one, two = check(prints(ONE.to_line()) + "time.sleep(3600)", seconds=1.5)
    assert one == ONE
    assert two.problem is Problem.FAILED
    assert "was stopped after 1.5 s" in two.message


def test_a_process_that_the_users_module_leaves_behind_is_not_waited_for(check, tmp_path):
    pid = tmp_path / "pid"
    leave = (
        "import subprocess; left = subprocess.Popen(['sleep', '3600'])\n"
        f"open({str(pid)!r}, 'w').write(str(left.pid))\n"
    )
    assert check(leave + prints(ONE.to_line(), TWO.to_line())) == [ONE, TWO]
    os.kill(int(pid.read_text()), signal.SIGKILL)
