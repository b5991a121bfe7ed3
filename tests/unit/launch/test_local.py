"""The local launcher, with a small program in the place of the runner."""

import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch import process as process_module
from airflow_tune_restore.launch.account import find_account
from airflow_tune_restore.launch.base import RunState, follow
from airflow_tune_restore.launch.local import LocalLauncher, build_launcher, user_code_paths
from airflow_tune_restore.launch.log_lines import LONGEST_LINE
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol.request import RunnerProgress, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings
from tests.support.waiting import PATIENCE_SECONDS, eventually

REQUEST = RunnerRequest(
    experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:f", trainable_name="f",
    action="resume",
)  # fmt: skip


@pytest.fixture
def launcher(tmp_path):
    """Returns a launcher whose interpreter runs a given script instead of the runner."""

    def make(script: str, **arguments) -> LocalLauncher:
        program = tmp_path / "program.py"
        program.write_text(script)
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -u {program} "$@"\n')
        python.chmod(0o755)
        return LocalLauncher(python=python.as_posix(), **arguments)

    return make


def test_lines_and_exit_code_come_through(launcher):
    process = launcher(
        "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    ).start(REQUEST)
    assert list(process.lines()) == ["one", "two"]
    assert process.wait() == 3


def test_the_contract_of_a_run_shows_its_output_and_returns_how_it_exited(launcher):
    shown = []
    result = RunnerProgress(trial_id="t", iteration=1, metrics={}).to_line()
    run = launcher(f"import sys; print('one'); print({result!r}); print('two'); sys.exit(3)").start(
        REQUEST
    )
    end = follow(run, shown.append)
    assert shown == ["one", result, "two"]
    assert (end.exit_code, end.message) == (3, "one\ntwo")
    assert run.poll() is RunState.ENDED


def test_a_runner_that_was_started_is_found_and_not_started_again(launcher):
    made = launcher("pass")
    assert made.find(REQUEST) is None
    run = made.start(REQUEST)
    assert made.find(REQUEST) is made.start(REQUEST) is run
    assert made.find(replace(REQUEST, attempt=2)) is None
    run.stop()


def test_only_a_trial_on_a_cluster_can_get_more_memory(launcher):
    settings = RunnerSettings(trainable="m:f")
    assert not launcher("").settings(settings).can_grow
    assert launcher("").settings(replace(settings, address="head:6379")).can_grow


def test_a_launcher_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InvalidInputError, match=r"'slurm' is not known. Give one of: local, ray\."):
        build_launcher("slurm")


def test_for_pods_the_operators_that_run_them_are_named():
    words = (
        "RestoreTrialKubernetesOperator, ContinueSearchKubernetesOperator or "
        "RunTuneSweepKubernetesOperator"
    )
    with pytest.raises(InvalidInputError, match=words) as error:
        build_launcher("kubernetes")
    assert "one of" not in str(error.value)


def test_the_runner_imports_what_lies_beside_the_dags_and_nothing_of_this_interpreter(
    monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(tmp_path)
    paths = user_code_paths()
    assert str(tmp_path) in paths
    assert not set(paths) & set(sysconfig.get_paths().values())


def test_the_runner_is_told_experiment_request_and_parent(launcher):
    process = launcher("import sys; print(sys.argv[1:])").start(REQUEST)
    (line,) = process.lines()
    key = ".tune_restore/r/trials/t/attempts/000001/request.json"
    assert line == str(
        ["-m", "airflow_tune_restore.runner", "run", "--experiment", "/e", "--request", key,
         "--parent-pid", str(os.getpid())]
    )  # fmt: skip


def test_airflows_variables_stay_here_and_the_users_arrive(launcher, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "secret")
    monkeypatch.setenv("AIRFLOW_CONN_AWS", "secret")
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "secret")
    script = "import os\nfor item in sorted(os.environ.items()): print(*item, sep='=')"
    process = launcher(script, env={"AWS_REGION": "x"}, pythonpath=["/code"]).start(REQUEST)
    lines = list(process.lines())
    assert "AWS_REGION=x" in lines
    assert not any("AIRFLOW" in line.partition("=")[0] for line in lines)
    (path,) = [line for line in lines if line.startswith("PYTHONPATH=")]
    assert path.startswith("PYTHONPATH=/code")


def test_only_our_package_is_put_on_the_path(launcher):
    script = "import os, sys; print(sorted(os.listdir(os.environ['PYTHONPATH'].split(':')[-1])))"
    process = launcher(script).start(REQUEST)
    assert list(process.lines()) == ["['airflow_tune_restore']"]


def test_a_runner_that_nobody_reads_does_not_wait(launcher):
    process = launcher("print('x' * 1_000_000)").start(REQUEST)
    assert process.wait(PATIENCE_SECONDS) == 0


def test_stop_asks_first(launcher):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n"
        "print('ready')\ntime.sleep(3600)"
    )
    process = launcher(script).start(REQUEST)
    assert next(process.lines()) == "ready"
    process.stop(PATIENCE_SECONDS)
    assert process.wait() == 4


def test_stop_kills_what_does_not_end_and_all_it_started(launcher):
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = 'import os, time; os.setpgid(0, 0); print(\"ready\", flush=True); time.sleep(3600)'\n"
        "subprocess.Popen([sys.executable, '-c', child])\ntime.sleep(3600)"
    )
    process = launcher(script).start(REQUEST)
    assert next(process.lines()) == "ready"
    process.stop(grace_seconds=0.2)
    assert process.wait() == -signal.SIGKILL
    assert _members(process.pid) == []


def test_what_a_killed_runner_leaves_behind_is_ended(launcher):
    script = (
        "import subprocess, sys, time\n"
        "child = 'import time; print(\"ready\", flush=True); time.sleep(3600)'\n"
        "subprocess.Popen([sys.executable, '-c', child])\ntime.sleep(3600)"
    )
    process = launcher(script).start(REQUEST)
    lines = process.lines()
    assert next(lines) == "ready"
    os.kill(process.pid, signal.SIGKILL)
    assert list(lines) == []  # the pipe is closed by all who held it
    assert process.wait() == -signal.SIGKILL
    assert _members(process.pid) == []


@pytest.mark.parametrize("start", [LocalLauncher.start, LocalLauncher.start_detached])
def test_an_interpreter_that_is_missing_is_named(start):
    with pytest.raises(InvalidInputError, match="Cannot start /nowhere/python"):
        start(LocalLauncher(python="/nowhere/python"), REQUEST)


def test_a_key_file_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launcher = LocalLauncher(env={"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"})
    with pytest.raises(InvalidInputError, match=r"Cannot read /nowhere/key\.json: No such file"):
        launcher.start_detached(REQUEST)
    assert list(tmp_path.iterdir()) == []


def test_the_output_of_a_detached_runner_is_read_from_what_was_opened_for_it(launcher, tmp_path):
    """A runner with another account could put a link to a file of ours in the place of its output."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    script = (
        "import os, sys\nhome = sys.argv[sys.argv.index('--home') + 1]\n"
        f"os.unlink(home + '/output.log'); os.symlink({str(secret)!r}, home + '/output.log')\n"
        "print('said', flush=True)\n"
    )
    with launcher(script).start_detached(REQUEST) as output:
        eventually(lambda: output.readline() == "said\n")
        shutil.rmtree(Path(output.name).parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as somebody else")
def test_nothing_is_opened_by_name_in_a_directory_that_its_account_may_change(
    tmp_path, monkeypatch
):
    """A runner at work may put a link there the moment that the directory is its account's."""
    secret = tmp_path / "airflow.cfg"
    secret.write_text("fernet_key")
    give_away = os.chown

    def link_at_once(path, uid, gid):
        give_away(path, uid, gid)
        if Path(path).is_dir():
            output = Path(path) / "output.log"
            output.unlink(missing_ok=True)
            output.symlink_to(secret)

    monkeypatch.setattr(os, "chown", link_at_once)
    launcher = LocalLauncher(python="/bin/echo", account=find_account("65534"))
    with launcher.start_detached(REQUEST) as output:
        eventually(lambda: (output.seek(0), "--request" in output.read())[1])
    assert secret.read_text() == "fernet_key"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as somebody else")
def test_an_interpreter_that_the_account_may_not_run_is_told_with_what_it_needs(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy("/bin/echo", closed / "python")
    launcher = LocalLauncher(python=str(closed / "python"), account=find_account("65534"))
    with pytest.raises(InvalidInputError, match=r"walk every directory above it.*python="):
        launcher.start(REQUEST)


def test_no_value_of_env_is_shown():
    launcher = LocalLauncher(env={"AWS_SECRET_ACCESS_KEY": "hidden"})
    assert "hidden" not in repr(launcher)


def test_the_package_link_goes_with_the_runner(launcher):
    script = "import os; print(os.environ['PYTHONPATH'].split(':')[-1])"
    process = launcher(script).start(REQUEST)
    (path,) = process.lines()
    process.wait()
    assert not Path(path).exists()


def test_a_wait_that_is_interrupted_does_not_take_the_runner_for_ended(launcher):
    """After a Ctrl-C in `Thread.join`, Python 3.11 says that the thread is over (seen: a second one)."""

    def interrupt(*_):
        raise KeyboardInterrupt

    process = launcher("import time; time.sleep(3600)").start(REQUEST)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  a slow machine is not awaited
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            process.wait(PATIENCE_SECONDS)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(TimeoutError):
        process.wait(0.1)
    process.stop(PATIENCE_SECONDS)
    assert process.wait() == -signal.SIGTERM


def test_a_runner_that_prints_faster_than_it_is_read_does_not_fill_memory(launcher, monkeypatch):
    monkeypatch.setattr(process_module, "BACKLOG_LINES", 100)
    result = RunnerProgress(trial_id="t", iteration=1, metrics={}).to_line()
    process = launcher(
        f"print({result!r}); print('line\\n' * 5000); print('x' * 10**6); print('the end')"
    ).start(REQUEST)
    process.wait()
    for thread in threading.enumerate():
        if thread.name == "runner-output":
            thread.join(PATIENCE_SECONDS)
    lines = list(process.lines())
    printed = 1 + 5000 + 1 + 4 + 1  # the long line in four pieces
    assert len(lines) == 1 + 1 + 100
    assert lines[0] == (
        f"… {printed - 1 - 100:,} lines left out here: it prints faster than they are shown"
    )
    assert lines[1] == result
    assert lines[-1] == "the end"
    assert max(map(len, lines)) <= LONGEST_LINE
