"""The runner's process: a check that then runs an attempt, and how it exits."""

import subprocess
import sys
from pathlib import Path

import pytest

from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.protocol.check import CheckAnswer, CheckRequest, ExperimentToCheck
from airflow_tune_restore.protocol.request import EXIT_REFUSED, RunnerRequest
from tests.support import ROOT

MODULE = """
import atexit, os, threading
print("imported in", os.getpid())
def train(config): pass
def say_later():
    threading.main_thread().join()
    print("the thread has ended")
threading.Thread(target=say_later).start()
atexit.register(print, "the handler was called")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "users.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def test_threads_and_exit_handlers_of_the_user_end_before_the_process(code):
    command = [sys.executable, "-m", "airflow_tune_restore.runner", "check", "--trainable"]
    ended = subprocess.run([*command, "users:train"], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-2:] == ["the thread has ended", "the handler was called"]
    refused = subprocess.run([*command, "users:no"], capture_output=True, text=True, check=False)
    assert refused.returncode == EXIT_REFUSED
    assert refused.stdout.splitlines()[-1] == "the handler was called"


def test_the_users_code_is_imported_once_for_the_check_and_the_first_attempt(code, tmp_path):
    experiment = (tmp_path / "experiment").as_posix()
    Path(experiment).mkdir()
    asked = ExperimentToCheck(experiment=experiment, trainable_name="train")
    request = RunnerRequest(
        experiment=experiment, restore_id="r", trial_id="t", attempt=1, trainable="users:train",
        trainable_name="train", action="resume",
    )  # fmt: skip
    with LocalLauncher() as launcher:
        answers = launcher.check(CheckRequest(trainable="users:train", experiments=[asked]))
        assert answers == [CheckAnswer(experiment=experiment)]
        run = launcher.start(request)  # it finds no request in the experiment
        lines = list(run.lines())
    assert [line for line in lines if "imported" in line] == [f"imported in {run.pid}"]
    assert any(line.startswith("error: ") and "request.json" in line for line in lines)
    assert lines[-2:] == ["the thread has ended", "the handler was called"]
    assert run.wait() == EXIT_REFUSED
