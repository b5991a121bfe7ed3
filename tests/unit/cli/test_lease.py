"""A restore that meets the lease of one that died: whom it waits for, how long, and how to break it."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import typer

from airflow_tune_restore.cli import restore as cli_restore
from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.protocol import layout, lease, lease_watch
from airflow_tune_restore.restore.start import start_plan, start_restore
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.records import night
from tests.support.waiting import PATIENCE_SECONDS

OPTIONS = ("--trainable", "m:train", "--no-resume-unfinished", "--stale-after", "0")
"""A restore that ends a trial and runs none."""

FLAG = "--break-lease"


@pytest.fixture
def experiment(tmp_path):
    return make_experiment(tmp_path / "x", [make_row("hung", status="RUNNING"), make_row("done")])


@pytest.fixture
def store(experiment):
    return open_store(str(experiment))


@pytest.fixture
def dead(experiment, store):
    """A restore took the lease, and died; the lease is silent for this long, and counts for this long."""

    def die(silent, ttl):
        lease.acquire(store, restore_id="r0", holder="tune-restore of bob, pid 7", ttl_seconds=ttl)
        os.utime(experiment / layout.lease_claim_key(1), (time.time() - silent,) * 2)  # noqa: TID251

    return die


@pytest.fixture
def answers(monkeypatch):
    """What the user answers, and the questions; there is a terminal."""
    given, asked = [], []

    def confirm(text, *, err):
        assert err
        asked.append(text)
        return given.pop(0)

    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    return given, asked


def test_a_silent_holder_is_named_with_the_times_and_the_command(tune_restore, experiment, dead):
    dead(silent=9999, ttl=1.5)
    code, _, err = tune_restore("restore", experiment, *OPTIONS)
    assert code == 0
    command = shlex.join(["tune-restore", "restore", FLAG, str(experiment), *OPTIONS])
    assert "Restore r0 of tune-restore of bob, pid 7 did not release the lease of " in err
    assert " UTC. Its last sign of life was at 20" in err
    assert f"If you know that it is dead, do not wait: `{command}`. " in err
    assert "It is watched for 2 s. If it stays silent, its lease is taken over then." in err
    assert "watching the lease: 1 s left of 2 s" in err


def test_the_holder_is_named_with_json_too(tune_restore, experiment, dead):
    dead(silent=9999, ttl=0.5)
    _, _, err = tune_restore("restore", experiment, *OPTIONS, "--json")
    assert "Restore r0 of tune-restore of bob" in err
    assert "left of" not in err


@pytest.mark.parametrize("command", ["undo", "release"])
def test_undo_and_release_name_the_holder(tune_restore, tmp_path, command):
    experiment = make_experiment(
        tmp_path / "y", [make_row("bad", status="ERROR"), make_row("done")]
    )
    store = open_store(str(experiment))
    night(store, "r1", result="failed")
    lease.acquire(store, restore_id="r0", holder="tune-restore of bob, pid 7", ttl_seconds=0.5)
    os.utime(experiment / layout.lease_claim_key(2), (time.time() - 9999,) * 2)  # noqa: TID251
    more = {"undo": "--yes", "release": "bad"}[command]
    code, _, err = tune_restore(command, experiment, more)
    assert code == 0
    assert "Restore r0 of tune-restore of bob, pid 7 did not release the lease of " in err


def test_a_lease_that_looks_alive_is_refused_with_the_command(tune_restore, experiment, dead):
    dead(silent=5, ttl=3600)
    code, _, err = tune_restore("restore", experiment, *OPTIONS)
    assert code == 3
    assert "Nothing was started. Wait until it ends, or until its lease expires. If you know" in err
    assert FLAG in err


def test_the_command_is_right_after_two_dashes(tune_restore, experiment, dead):
    dead(silent=5, ttl=3600)
    _, _, err = tune_restore("restore", *OPTIONS, "--", experiment)
    assert f"`tune-restore restore {FLAG} --trainable m:train" in err


def test_of_two_that_break_a_lease_the_slower_one_names_the_other(
    tune_restore, experiment, store, dead, monkeypatch
):
    """The other one takes the lease, commits and releases it, between this one's wait and its start."""
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", 0.0)
    dead(silent=5, ttl=3600)

    def be_slower(prepared, *_, **how):
        monkeypatch.setattr(cli_restore, "start_restore", start_restore)
        code, _, _ = tune_restore("restore", experiment, *OPTIONS, FLAG, "--yes")
        assert code == 0
        return start_plan(prepared, holder=how["holder"]), None

    monkeypatch.setattr(cli_restore, "start_restore", be_slower)
    code, _, err = tune_restore("restore", experiment, *OPTIONS, FLAG, "--yes")
    (winner,) = lease.earlier_restores(store, "r0")[1:]
    assert code == 3
    assert f"and restore {winner} committed {STATE_NAME[:-5]}_r000001.json since." in err


def test_without_a_terminal_yes_is_needed(tune_restore, experiment, dead, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    dead(silent=5, ttl=3600)
    code, _, err = tune_restore("restore", experiment, *OPTIONS, FLAG)
    assert code == 2
    assert "needs a terminal. Add --yes if you know that the restore is dead." in err


def test_the_user_is_asked_and_warned(tune_restore, experiment, store, dead, answers, monkeypatch):
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", 0.2)
    given, asked = answers
    dead(silent=5, ttl=3600)
    given.append(False)
    code, _, err = tune_restore("restore", experiment, *OPTIONS, FLAG)
    assert code == 3
    assert "is being restored by tune-restore of bob, pid 7" in err
    assert lease.check_held(store, "r0").epoch == 1
    given.append(True)
    code, _, err = tune_restore("restore", experiment, *OPTIONS, FLAG)
    assert code == 0
    assert "You have confirmed that it is dead. It is watched for 0 s." in err
    assert lease.unreleased(store, but="") == []
    question = asked[-1]
    assert question.startswith(
        "Restore r0 of tune-restore of bob, pid 7 did not release the lease "
    )
    assert "Its last sign of life was at 20" in question
    assert "A restore whose trials all wait in a queue" in question


def test_no_lease_is_no_question(tune_restore, experiment, answers):
    code, _, _ = tune_restore("restore", experiment, *OPTIONS, FLAG)
    assert (code, answers[1]) == (0, [])


def test_a_heartbeat_that_moves_refuses_even_a_yes(
    tune_restore, experiment, store, dead, monkeypatch
):
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", PATIENCE_SECONDS)
    dead(silent=5, ttl=3600)
    lives = threading.Thread(target=lambda: [time.sleep(0.5), lease.keep_alive(store, "r0")])
    monkeypatch.setattr(Progress, "count_down", lambda *_: lives.ident or lives.start())
    code, _, err = tune_restore("restore", experiment, *OPTIONS, FLAG, "--yes")
    lives.join()
    assert code == 3
    assert "It lives: it wrote while it was watched." in err
    assert lease.check_held(store, "r0").epoch == 1


PROGRAM = "from airflow_tune_restore.cli.app import main; main()"
PRESS_AT_THE_VERY_END = """
import os, signal
class Late:
    def __del__(self): os.kill(os.getpid(), signal.SIGINT)
late = Late()
"""


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize(
    "before", ["", PRESS_AT_THE_VERY_END], ids=["", "and once more at the end"]
)
def test_ctrl_c_while_it_waits_ends_it_in_one_sentence(experiment, store, dead, before, presses):
    dead(silent=9999, ttl=3600)
    command = [sys.executable, "-c", before + PROGRAM, "restore", experiment, *OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "left of" in line:
            break
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(PATIENCE_SECONDS) == 130
    assert rest == "Stopped.\n"
    assert lease.check_held(store, "r0").epoch == 1
