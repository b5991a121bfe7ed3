"""How a command ends when it is stopped, or asks: exit codes, questions and answers."""

import importlib.metadata
import io
import signal
import subprocess
import sys

import pytest
import typer

from airflow_tune_restore.cli import commands as cli
from airflow_tune_restore.cli import restore
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.records import night

DONE = make_row("done", last_result={"training_iteration": 4}, last_result_time=4.0)
BAD = make_row("bad", status="ERROR", error=True, last_result_time=3.0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_its_exit_code(tune_restore, tmp_path, monkeypatch, number, code):
    """Before anything is started, and after what was done is committed."""
    experiment = make_experiment(tmp_path / "exp", [DONE, BAD])
    command = ("restore", experiment, "--trainable", "m:t", "--resume-errored")
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)

    def stopped_at_once(*_):
        signal.raise_signal(number)

    monkeypatch.setattr(restore, "restore_experiment", stopped_at_once)
    assert tune_restore(*command)[::2] == (code, "Stopped.\n")

    words = "Stopped. What the trials have done is kept; run the command again to continue."

    def stopped_and_committed(store, _launcher, _options, progress):
        progress.has_started = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        return night(store, "r1", result=Result.INTERRUPTED)

    monkeypatch.setattr(restore, "restore_experiment", stopped_and_committed)
    ended, out, err = tune_restore(*command)
    assert (ended, err) == (code, f"{words}\n")
    assert "committed as" in out


@pytest.fixture
def answer(monkeypatch):
    """Give the answer in a terminal; None: there is no terminal."""

    def give(text):
        stdin = io.StringIO(text or "")
        stdin.isatty = lambda: text is not None
        monkeypatch.setattr(sys, "stdin", stdin)

    return give


@pytest.fixture
def committed(tmp_path):
    experiment = make_experiment(tmp_path / "exp", [DONE, BAD])
    night(open_store(str(experiment)), "r1", result="finished")
    return experiment, STATE_NAME.replace(".json", "_r000001.json")


def test_undo_asks_and_names_what_it_deletes_and_what_is_newest_then(
    tune_restore, committed, answer
):
    experiment, state = committed
    for text in ("n\n", "\n"):
        answer(text)
        code, out, err = tune_restore("undo", experiment)
        assert (code, out) == (1, "")
        assert f"Undo the commit of restore r1 to {experiment}?" in err
        assert f"It deletes {state}; then {STATE_NAME} is the newest state. [y/N]" in err
        assert err.endswith("Nothing was changed.\n")
        assert (experiment / state).exists()
    answer("y\n")
    code, out, _ = tune_restore("undo", experiment)
    assert code == 0
    assert not (experiment / state).exists()


def test_without_a_terminal_undo_is_refused_in_one_sentence_unless_it_is_sure(
    tune_restore, committed, answer
):
    experiment, state = committed
    answer(None)
    for options in ((), ("--json",)):
        code, out, err = tune_restore("undo", experiment, *options)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "add --yes" in err
        assert (experiment / state).exists()
    assert tune_restore("undo", experiment, "--yes")[0] == 0
    assert not (experiment / state).exists()


def test_ctrl_c_at_the_question_is_exit_code_130(tune_restore, committed, answer):
    experiment, state = committed
    answer("")  # as Ctrl-D

    code, _, err = tune_restore("undo", experiment)
    assert code == 130
    assert err.endswith("Nothing was changed.\nStopped.\n")
    assert (experiment / state).exists()


@pytest.mark.parametrize(
    "module", ["typing", "msgspec", "rich", "airflow_tune_restore.cli.options"]
)
def test_ctrl_c_amid_the_imports_is_a_word_and_exit_code_130(committed, module):
    program = "airflow_tune_restore.cli.app"
    experiment, _ = committed
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", program, "undo", experiment],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            break
    process.send_signal(signal.SIGINT)
    *imports, last = process.stderr.read().splitlines()
    assert (process.wait(60), last) == (130, "Stopped.")
    assert all(line.startswith("import time:") for line in imports)


def test_version_names_package_python_and_ray(tune_restore, monkeypatch):
    code, out, _ = tune_restore("--version")
    package, python, ray = out.splitlines()
    assert code == 0
    assert package.startswith("airflow-tune-restore ")
    assert python.startswith(f"Python {sys.version.split()[0]}")
    assert ray.startswith("Ray 2.")

    def lost(name):
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", lost)
    assert "Ray is not installed here" in tune_restore("--version")[1]


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ("tune-restore ", "scan plan restore release undo report recipe"),
        ("tune-restore recipe ", "write show check"),
        (
            "tune-restore recipe write x --strategy ",
            "auto per_trial shared_driver whole_experiment",
        ),
        ("tune-restore plan x --strategy ", "auto per_trial shared_driver whole_experiment"),
        ("tune-restore plan x --errored ", "skip resume restart"),
        ("tune-restore restore x --on ", "local ray kubernetes"),
        ("tune-restore plan x --restart", "--restart-errored"),
    ],
)
def test_bash_completes_commands_options_and_the_values_of_options_with_few(
    monkeypatch, capsys, words, choices
):
    monkeypatch.setenv("_TUNE_RESTORE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        typer.main.get_command(cli.app)(prog_name="tune-restore")
    assert capsys.readouterr().out.split() == choices.split()
