"""The command line: what it prints, what it exits with, and that a mistake is one sentence."""

import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from airflow_tune_restore.cli import restore
from airflow_tune_restore.cli.signals import sigterm_as_ctrl_c
from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.check import CheckAnswer, Problem
from airflow_tune_restore.storage.fs import open_store
from tests.support.checks import answer_all
from tests.support.ended_runs import EndedRuns
from tests.support.experiments.built import (
    STATE_NAME,
    lose_searcher,
    make_experiment,
    make_row,
    make_state,
)
from tests.support.records import leave_outcome, night


def age(directory, seconds):
    """Make every file of an experiment look as old as that."""
    for path in directory.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)  # noqa: TID251


DONE = make_row("done", last_result={"training_iteration": 4, "score": 8}, last_result_time=4.0)
BAD = make_row("bad", status="ERROR", error=True, last_result_time=3.0)
HUNG = make_row("hung", status="RUNNING", last_result_time=2.0)


def test_scan_tells_the_health_of_every_experiment(tune_restore, tmp_path):
    age(make_experiment(tmp_path / "a-finished", [DONE]), 9999)
    age(make_experiment(tmp_path / "b-errored", [DONE, BAD]), 9999)
    age(make_experiment(tmp_path / "c-interrupted", [DONE, HUNG]), 9999)
    make_experiment(tmp_path / "d-running", [DONE, HUNG])
    (make_experiment(tmp_path / "e-not-started", [DONE]) / STATE_NAME).unlink()
    age(tmp_path / "e-not-started", 9999)
    (make_experiment(tmp_path / "f-unreadable", [DONE]) / STATE_NAME).write_bytes(
        b'{"trial_data": [["'
    )
    make_experiment(tmp_path / "team" / "user" / "g-nested", [DONE])
    (tmp_path / "not an experiment").mkdir()

    code, out, _ = tune_restore("scan", tmp_path, "--json")
    assert code == 0
    found = {Path(entry["experiment"]).name: entry for entry in json.loads(out)}
    assert {name: entry["health"] for name, entry in found.items()} == {
        "a-finished": "finished",
        "b-errored": "errored",
        "c-interrupted": "interrupted",
        "d-running": "running",
        "e-not-started": "not_started",
        "f-unreadable": "unreadable",
        "g-nested": "finished",
    }
    errored = found["b-errored"]
    assert errored["trials"] == {"ERROR": 1, "TERMINATED": 1}
    assert errored["state_file"] == STATE_NAME
    assert errored["samples_left"] == 0
    assert datetime.fromisoformat(errored["last_write"]).tzinfo is not None
    assert set(errored) == set(
        "experiment health reason trials state_file last_write samples_left quarantined".split()
    )
    assert "not a whole experiment state" in found["f-unreadable"]["reason"]


def test_the_table_of_a_scan_is_plain_lines_in_a_pipe(tune_restore, tmp_path):
    age(make_experiment(tmp_path / "x", [DONE, BAD]), 9999)
    code, out, _ = tune_restore("scan", tmp_path)
    assert code == 0
    heading, _, line = out.splitlines()
    assert heading.split() == "experiment health trials last write (UTC) why".split()
    assert line.split()[:2] == [str(tmp_path / "x"), "errored"]
    assert all(text == text.rstrip() for text in out.splitlines())


def test_stale_after_says_how_long_silence_must_last(tune_restore, tmp_path):
    age(make_experiment(tmp_path / "x", [HUNG]), 100)
    for seconds, health in ((50, "interrupted"), (200, "running"), (0, "interrupted")):
        _, out, _ = tune_restore("scan", tmp_path, "--stale-after", seconds, "--json")
        assert json.loads(out)[0]["health"] == health


def test_a_trial_directory_that_is_written_to_is_a_sign_of_life(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [HUNG])
    age(experiment, 9999)
    (experiment / "dir_hung").mkdir()
    (experiment / "dir_hung" / "result.json").write_text("{}\n")
    _, out, _ = tune_restore("scan", tmp_path, "--json")
    assert json.loads(out)[0]["health"] == "running"


def test_what_a_restore_wrote_itself_is_no_sign_of_life(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [HUNG])
    (experiment / "dir_hung").mkdir()
    (experiment / "dir_hung" / "result.json").write_text("{}\n")
    committed = STATE_NAME.replace(".json", "_r000001.json")
    (experiment / committed).write_bytes(make_state([HUNG], start_time=1001.0))
    _, out, _ = tune_restore("scan", tmp_path, "--json")
    (report,) = json.loads(out)
    assert report["health"] == "interrupted"
    assert "nothing written since it was last restored" in report["reason"]

    age(experiment, 9999)
    (experiment / "dir_hung" / "result.json").write_text("{}\n{}\n")  # its driver is back
    _, out, _ = tune_restore("scan", tmp_path, "--json")
    assert json.loads(out)[0]["health"] == "running"


def test_an_empty_prefix_is_an_empty_list(tune_restore, tmp_path):
    assert tune_restore("scan", tmp_path, "--json")[:2] == (0, "[]\n")
    assert "No Tune experiment" in tune_restore("scan", tmp_path)[1]


def test_links_and_other_odd_things_keep_nobody_from_being_found(tune_restore, tmp_path):
    """Each stopped or hung a whole scan; through links one experiment was found four times."""
    for name in ("good", "looping", "piped"):
        age(make_experiment(tmp_path / name, [DONE, BAD]), 9999)
    later = STATE_NAME.replace("2026", "2027")
    (tmp_path / "looping" / later).symlink_to(later)
    os.mkfifo(tmp_path / "piped" / later)
    (tmp_path / "latest").symlink_to("good")
    (tmp_path / "me").symlink_to(".")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    code, out, _ = tune_restore("scan", tmp_path, "--json")
    assert code == 0
    found = {Path(entry["experiment"]).name: entry for entry in json.loads(out)}
    assert len(found) == len(json.loads(out))
    assert {name: entry["health"] for name, entry in found.items()} == {
        "good": "errored",
        "looping": "errored",
        "piped": "errored",
    }
    assert f"{later} was skipped: Cannot read" in found["looping"]["reason"]
    assert "Too many levels of symbolic links" in found["looping"]["reason"]


def test_a_link_that_is_named_is_followed(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "sweeps" / "good", [DONE, BAD])
    (tmp_path / "link").symlink_to("sweeps")
    (tmp_path / "latest").symlink_to(experiment)
    for prefix, name in ((tmp_path / "link", "link/good"), (tmp_path / "latest", "latest")):
        (report,) = json.loads(tune_restore("scan", prefix, "--json")[1])
        assert report["experiment"] == str(tmp_path / name)
    _, out, _ = tune_restore("plan", tmp_path / "latest", "--resume-errored", "--json")
    assert json.loads(out)["experiment"] == str(tmp_path / "latest")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="few other disks hold such times")
def test_a_time_in_no_year_stops_no_scan(tune_restore):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for name, seconds in (("a", 300_000_000_000), ("b", 253_402_300_799), ("c", -9e10)):
            experiment = make_experiment(Path(directory, name), [DONE, BAD])
            os.utime(experiment / STATE_NAME, (seconds, seconds))
        code, out, _ = tune_restore("scan", directory, "--explain")
    assert code == 0
    assert len([line for line in out.splitlines() if line.startswith(directory)]) >= 3


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), "a b d t"),  # and none in a hidden directory
        (("--include", "team_a/**"), "a d t"),
        (("--include", "team_a/**", "--exclude", "tmp*"), "a d"),
        (("--max-depth", "2"), "a b"),
    ],
)
def test_a_search_is_narrowed_and_hidden_directories_are_passed_over(
    tune_restore, tmp_path, options, found
):
    for path in ("team_a/a", "team_a/deep/er/d", "team_a/tmp-1/t", "team_b/b", ".trash/h"):
        make_experiment(tmp_path / path, [DONE])
    _, out, _ = tune_restore("scan", tmp_path, "--json", *options)
    assert sorted(Path(entry["experiment"]).name for entry in json.loads(out)) == found.split()


def test_a_path_that_is_not_a_directory_is_not_an_empty_prefix(tune_restore, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for prefix in ("missing", "file", "s3:/bucket", "nowhere/at/all"):
        code, out, err = tune_restore("scan", prefix, "--json")
        assert (code, out) == (2, "")
        assert f"{tmp_path / prefix} is not a directory" in err


def test_plan_prints_the_fields_machines_read(tune_restore, tmp_path):
    make_experiment(tmp_path / "x", [DONE, BAD, HUNG])
    code, out, _ = tune_restore("plan", tmp_path / "x", "--resume-errored", "--json")
    assert code == 0
    plan = json.loads(out)
    assert {"experiment", "strategy", "samples_left", "trials"} <= set(plan)
    fields = {"trial_id", "status", "action", "checkpoint", "iteration", "reason"}
    assert all(fields <= set(trial) for trial in plan["trials"])
    assert {t["trial_id"]: t["action"] for t in plan["trials"]} == {
        "done": "keep",
        "bad": "resume",
        "hung": "resume",
    }
    assert not (tmp_path / "x" / layout.ROOT).exists()


@pytest.mark.parametrize("command", ["scan", "plan", "restore", "release", "undo"])
def test_help_shows_the_whole_name_of_every_option(tune_restore, monkeypatch, command):
    """Typer's panels cut them off in a terminal of the usual width."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = tune_restore(command, "--help")
    assert code == 0
    assert "…" not in out
    assert "--json" in out
    assert ("--no-resume-unfinished" in out) == (command in ("plan", "restore"))


@pytest.mark.parametrize(
    ("flags", "actions"),
    [
        ((), {"bad": "keep", "hung": "resume"}),
        (("--restart-errored",), {"bad": "restart", "hung": "resume"}),
        (("--resume-errored", "--restart-errored"), {"bad": "resume", "hung": "resume"}),
        (("--no-resume-unfinished",), {"bad": "keep", "hung": "terminate"}),
        (("--errored", "restart"), {"bad": "restart", "hung": "resume"}),
        (("--errored", "skip", "--unfinished", "restart"), {"bad": "keep", "hung": "restart"}),
        (("--unfinished", "skip", "--resume-errored"), {"bad": "resume", "hung": "terminate"}),
        (("--finished", "resume"), {"bad": "keep", "hung": "resume", "done": "resume"}),
        (
            ("--finished", "restart", "--no-resume-unfinished"),
            {"bad": "keep", "hung": "terminate", "done": "restart"},
        ),
    ],
)
def test_flags_reach_the_plan(tune_restore, tmp_path, flags, actions):
    make_experiment(tmp_path / "x", [BAD, HUNG, DONE])
    _, out, err = tune_restore("plan", tmp_path / "x", *flags, "--json")
    planned = {t["trial_id"]: t["action"] for t in json.loads(out)["trials"]}
    assert planned == {"done": "keep"} | actions, err


def make_alive(experiment):
    age(experiment, 0)


def make_leased(experiment):
    lease.acquire(open_store(str(experiment)), restore_id="other", holder="somebody")


def make_unnameable(experiment):
    shutil.copy(experiment / STATE_NAME, experiment / "experiment_state-x_r999999.json")
    age(experiment, 9999)


def link_our_directory(experiment):
    (experiment / "elsewhere").mkdir()
    (experiment / layout.ROOT).symlink_to("elsewhere")


def link_lease(experiment):
    (experiment / "elsewhere").mkdir()
    (experiment / layout.ROOT).mkdir()
    (experiment / layout.LEASE).symlink_to("../elsewhere")


@pytest.mark.parametrize(
    "spoil", [make_alive, make_leased, make_unnameable, link_our_directory, link_lease]
)
def test_plan_notes_what_restore_would_refuse(tune_restore, tmp_path, spoil):
    experiment = make_experiment(tmp_path / "x", [DONE, HUNG])
    age(experiment, 9999)
    flags = ("--resume-errored", "--json")
    assert json.loads(tune_restore("plan", experiment, *flags)[1])["refusals"] == []
    spoil(experiment)
    code, out, _ = tune_restore("plan", experiment, *flags)
    refusals = json.loads(out)["refusals"]
    assert code == 0
    code, out, _ = tune_restore("plan", experiment, "--resume-errored")
    assert code == 0
    if spoil in (make_alive, make_leased):  # who is at work stands at the top
        assert out.startswith(refusals[0].replace(str(experiment), "This experiment")[:40])
    else:
        assert f"note: a restore would be refused now: {refusals[0][:60]}" in out
    code, _, err = tune_restore("restore", experiment, "--resume-errored", "--trainable", "a:b")
    assert code != 0
    assert err.startswith(f"error: {refusals[0][:60]}")


def test_plan_in_json_tells_who_is_at_work(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [DONE, BAD])
    age(experiment, 9999)
    idle = json.loads(tune_restore("plan", experiment, "--json")[1])
    assert (idle["running"], idle["leased_by"]) == (None, None)
    make_leased(experiment)
    leased = json.loads(tune_restore("plan", experiment, "--json")[1])
    assert (leased["running"], leased["leased_by"]) == (None, "somebody")
    alive = make_experiment(tmp_path / "y", [DONE, HUNG])
    assert "last written" in json.loads(tune_restore("plan", alive, "--json")[1])["running"]


def test_plan_is_told_that_the_driver_is_dead(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [DONE, HUNG])
    assert "is running" in tune_restore("plan", experiment)[1]
    assert "is running" not in tune_restore("plan", experiment, "--stale-after", 0)[1]


@pytest.mark.parametrize("command", ["plan", "restore"])
@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("--errored", "--resume-errored"),
        ("--errored", "--restart-errored"),
        ("--unfinished", "--resume-unfinished"),
        ("--unfinished", "--no-resume-unfinished"),
    ],
)
def test_two_choices_for_the_same_trials_are_refused(tune_restore, tmp_path, command, option, flag):
    make_experiment(tmp_path / "x", [BAD])
    more = ("--trainable", "m:t") if command == "restore" else ()
    for choice in ("skip", "resume", "restart"):  # also where both mean the same
        code, _, err = tune_restore(command, tmp_path / "x", option, choice, flag, *more)
        assert code == 2
        assert err.strip().endswith(
            f"{option} and {flag} are two choices for the same trials. Give one of them."
        )


def test_cut_short_trials_have_their_own_choice_beside_that_for_finished_ones(
    tune_restore, tmp_path
):
    cut = make_row("cut", last_result={"training_iteration": 2, "done": False})
    ended = make_row("ended", last_result={"training_iteration": 4, "done": True})
    state = {"_fail_fast": True, "_has_errored": True}
    make_experiment(tmp_path / "x", [BAD, cut, ended], total_samples=3, live=["cut"], **state)
    _, out, _ = tune_restore(
        "plan", tmp_path / "x", "--resume-cut-short", "--finished", "restart", "--json"
    )
    actions = {t["trial_id"]: t["action"] for t in json.loads(out)["trials"]}
    assert actions == {"bad": "keep", "cut": "resume", "ended": "restart"}


def test_a_tuner_pkl_of_another_run_is_told_by_scan_plan_and_restore(
    tune_restore, tmp_path, monkeypatch
):
    experiment = make_experiment(
        tmp_path / "x", [make_row("t", status="ERROR", trainable_name="old")]
    )
    tuner = experiment / "tuner.pkl"
    tuner.write_bytes(tuner.read_bytes())  # when the name was used again
    told = "tuner.pkl belongs to another run: it names the trainable 'train', the trials were run"
    _, out, _ = tune_restore("scan", tmp_path, "--stale-after", "0", "--json")
    assert told in json.loads(out)[0]["reason"]
    _, out, _ = tune_restore("plan", experiment, "--resume-errored")
    assert f"note: {told}" in out
    assert "--ignore-tuner" in out
    _, out, _ = tune_restore("plan", experiment, "--resume-errored", "--ignore-tuner")
    assert told not in out
    assert "note: tuner.pkl is ignored (ignore_tuner): the RunConfig" in out

    launcher = Launcher(open_store(str(experiment)))
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    command = ("restore", experiment, "--trainable", "m:old", "--stale-after", "0")
    code, out, err = tune_restore(*command, "--resume-errored")
    assert code == 0, err
    assert f"note: {told}" in out + err


def test_the_shell_ignores_tuner_pkl_if_told_to(tune_restore, tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path / "x", [BAD])
    checked = []
    launcher = Launcher(open_store(str(experiment)))

    def check(request, _timeout):
        checked.extend(request.experiments)
        return answer_all(request)

    monkeypatch.setattr(launcher, "check", check)
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    command = (
        "restore",
        experiment,
        "--trainable",
        "m:t",
        "--stale-after",
        "0",
        "--resume-errored",
    )
    tune_restore(*command)
    tune_restore(*command, "--ignore-tuner")
    assert [asked.ignore_tuner for asked in checked] == [False, True]


def test_the_check_of_the_shell_has_a_limit_and_its_warning_is_a_note(
    tune_restore, tmp_path, monkeypatch
):
    experiment = make_experiment(tmp_path / "x", [BAD])
    asked = []
    launcher = Launcher(open_store(str(experiment)))

    def check(request, timeout):
        asked.append((request.experiments[0].trust_name, timeout.total_seconds()))
        return answer_all(request, CheckAnswer(experiment="", message="It may be another one."))

    monkeypatch.setattr(launcher, "check", check)
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    _, out, err = tune_restore(
        *command, "--resume-errored", "--trust-name", "--check-timeout", "90"
    )
    assert asked == [(True, 90.0)]
    assert "note: It may be another one." in out + err
    code, _, err = tune_restore(*command, "--check-timeout", "0")
    assert code == 2
    assert "0 leaves no time" in err


def test_a_misfit_is_refused_by_the_shell_before_anything_is_written(
    tune_restore, tmp_path, monkeypatch
):
    experiment = make_experiment(tmp_path / "x", [BAD])
    launcher = Launcher(open_store(str(experiment)))
    misfit = CheckAnswer(experiment="", problem=Problem.MISFIT, message="It is another one.")
    monkeypatch.setattr(launcher, "check", lambda request, _: answer_all(request, misfit))
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, _, err = tune_restore(*command, "--resume-errored")
    assert (code, err) == (2, "error: It is another one.\n")
    assert not (experiment / layout.ROOT).exists()


def test_scan_explains_what_older_runs_left_and_only_then_reads_them(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [BAD])
    later = STATE_NAME.replace("2026", "2027")
    (experiment / later).write_bytes(make_state([DONE], start_time=2000.0))
    hidden = f"{STATE_NAME} of an older run holds 1 trial (1 ERROR)"
    assert hidden not in tune_restore("scan", tmp_path, "--stale-after", "0")[1]
    assert hidden in tune_restore("scan", tmp_path, "--explain", "--stale-after", "0")[1]
    assert f"note: {hidden}" in tune_restore("plan", experiment)[1]


def test_a_live_experiment_is_refused_with_exit_code_3(tune_restore, tmp_path):
    make_experiment(tmp_path / "x", [HUNG])
    code, _, err = tune_restore("restore", tmp_path / "x", "--trainable", "m:train")
    assert code == 3
    assert "is running" in err
    assert "--stale-after 0" in err


def test_a_leased_experiment_is_refused_with_exit_code_3(tune_restore, tmp_path):
    make_experiment(tmp_path / "x", [BAD])
    store = open_store(str(tmp_path / "x"))
    lease.acquire(store, restore_id="other", holder="dag nightly on host 7")
    code, _, err = tune_restore(
        "restore", tmp_path / "x", "--trainable", "m:train", "--resume-errored"
    )
    assert code == 3
    assert "dag nightly on host 7" in err


class Launcher(EndedRuns):
    """Stands for `LocalLauncher`: its runners end at once, one of them with a failure."""

    def __init__(self, store):
        self._store = store

    def check(self, request, _timeout):
        return answer_all(request)

    def start(self, request):
        failed = request.trial_id == "bad"
        row = make_row(request.trial_id, status="ERROR" if failed else "TERMINATED", error=failed)
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self._store.put(key, make_state([row]))
        leave_outcome(self._store, request, "failed" if failed else "finished")
        return self


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--resume-errored",), 1)])
def test_a_trial_that_fails_again_is_exit_code_1(tune_restore, tmp_path, monkeypatch, flags, code):
    experiment = make_experiment(tmp_path / "x", [DONE, BAD, HUNG])
    launcher = Launcher(open_store(str(experiment)))
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0", "--json")
    ended, out, err = tune_restore(*command, *flags)
    assert ended == code, err
    after = {trial["trial_id"]: trial["status_after"] for trial in json.loads(out)["trials"]}
    assert after == {"done": "TERMINATED", "bad": "ERROR", "hung": "TERMINATED"}


@pytest.mark.parametrize(
    ("where", "in_pods"), [((), False), (("--on", "kubernetes", "--image", "x"), True)]
)
def test_a_plan_for_pods_shares_no_driver(tune_restore, tmp_path, monkeypatch, where, in_pods):
    seen = []

    def restore(_store, _build_launcher, options, _progress):
        seen.append(options.prepare.in_pods)
        raise InvalidInputError("seen enough")

    monkeypatch.setattr("airflow_tune_restore.cli.restore.restore_experiment", restore)
    experiment = make_experiment(tmp_path / "x", [BAD])
    assert tune_restore("restore", experiment, "--trainable", "m:t", *where)[0] == 2
    assert seen == [in_pods]


class Samples(Launcher):
    """Its runners end trials well; of the run that draws samples each test has its own end."""

    def __init__(self, store, trials, end):
        super().__init__(store)
        self.trials = trials
        self.end = end
        self.started = []
        self.asked = []

    def check(self, request, timeout):
        self.asked += [asked.search_alg for asked in request.experiments]
        return super().check(request, timeout)

    def start(self, request):
        self.started.append((request.trial_id, request.search_alg))
        if request.trial_id != layout.WHOLE_EXPERIMENT:
            return super().start(request)
        if isinstance(self.end, Exception):
            raise self.end
        ids = [*self.trials, *(f"new{number}" for number in range(self.end[1]))]
        rows = [make_row(trial_id) for trial_id in ids]
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self._store.put(key, make_state(rows))
        if self.end[0] is not None:
            leave_outcome(self._store, request, self.end[0], error="no suggestion")
        return self


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """Make an experiment with three samples left, and the launcher of its restore."""

    def make(*rows, end=("finished", 3), lost=True):
        experiment = make_experiment(tmp_path / "x", list(rows), total_samples=len(rows) + 3)
        if lost:
            lose_searcher(experiment, total_samples=len(rows) + 3)
        trials = ["done", "hung"][: len(rows)]
        launcher = Samples(open_store(str(experiment)), trials, end)
        monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
        return experiment, launcher

    return make


def test_samples_without_their_searcher_are_exit_code_1_with_trials_and_2_alone(
    tune_restore, samples
):
    experiment, launcher = samples(DONE, HUNG)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, out, _ = tune_restore(*command)
    assert code == 1
    assert "1 resumed trial finished; 3 samples cannot be drawn" in out
    assert "search_alg in a DAG, --search-alg in the shell" in out
    for _ in range(2):  # and every night
        code, _, err = tune_restore(*command)
        assert code == 2
        assert "3 samples cannot be drawn" in err
    assert launcher.started == [("hung", None)]
    code, out, _ = tune_restore("plan", experiment)
    assert "note: 3 samples cannot be drawn" in out


def test_a_searcher_that_is_named_is_checked_and_reaches_the_run(tune_restore, samples):
    experiment, launcher = samples(DONE, HUNG)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, out, err = tune_restore(*command, "--search-alg", "m:searcher")
    assert code == 0, out + err
    assert launcher.asked == ["m:searcher"]
    assert launcher.started == [("hung", None), (layout.WHOLE_EXPERIMENT, "m:searcher")]
    assert "all 3 samples drawn now finished" in out


@pytest.mark.parametrize("rows", [(DONE,), (DONE, HUNG)])
@pytest.mark.parametrize(
    ("end", "words"),
    [
        (("interrupted", 1), "the run broke off: no suggestion; 2 samples were never drawn"),
        (("refused", 0), "the run broke off: no suggestion; 3 samples were never drawn"),
        ((None, 1), "the run broke off: its runner exited without recording an outcome"),
        (StorageError("the store was away"), "its runner exited without recording an outcome"),
        (("finished", 2), "1 sample was never drawn"),
    ],
)
def test_samples_that_are_still_left_are_exit_code_1(tune_restore, samples, rows, end, words):
    experiment, _ = samples(*rows, end=end, lost=False)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, out, _ = tune_restore(*command)
    assert code == 1
    assert words in out


def test_of_the_chosen_trials_alone_the_exit_code_depends(tune_restore, samples):
    experiment, launcher = samples(DONE, BAD, HUNG, lost=False)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, out, err = tune_restore(*command, "--trial", "hung")
    assert code == 0, out + err
    assert launcher.started == [("hung", None)]
    assert "2 trials not chosen, left as recorded; 3 samples were never drawn" in out
    code, out, err = tune_restore(*command, "--trial", "bad")
    assert (code, "Nothing to restore" in out) == (0, True)
    assert "1 ERROR trial stays as it is: --resume-errored or --restart-errored would run it" in err
    assert tune_restore(*command, "--trial", "bad", "--resume-errored")[0] == 1
    code, _, err = tune_restore(*command, "--trial", "hun")
    assert (code, "has no trial 'hun'. Ids like it: hung." in err) == (2, True)


def test_only_the_matching_trials_are_planned_and_run(tune_restore, samples):
    experiment, launcher = samples(DONE, BAD, HUNG, lost=False)
    more = ("--stale-after", "0", "--resume-errored")
    code, out, _ = tune_restore("plan", experiment, *more, "--only", "status=RUNNING")
    assert (code, "not among the chosen trials" in out) == (0, True)
    command = ("restore", experiment, "--trainable", "m:t", *more)
    code, out, err = tune_restore(*command, "--only", "cause=node_lost", "--only", "status=ERROR")
    assert (code, "Nothing to restore" in out, launcher.started) == (0, True, [])
    assert "no trial that would run matches only=status=ERROR, cause=node_lost" in err
    code, out, err = tune_restore(*command, "--only", "experiment=other")
    assert (code, "no glob of only=experiment=other names it" in err) == (0, True)
    code, out, err = tune_restore(*command, "--only", "status=RUNNING", "--only", "status=PENDING")
    assert code == 0, out + err
    assert launcher.started == [("hung", None)]
    assert "2 trials not chosen, left as recorded; 3 samples were never drawn" in out
    code, _, err = tune_restore(*command, "--only", "cause=lost_node")
    assert (code, "Did you mean node_lost?" in err) == (2, True)


def test_samples_after_a_restore_that_runs_no_trial_get_the_settings_of_the_launcher(
    tune_restore, samples
):
    experiment, launcher = samples(DONE, HUNG, lost=False)
    addresses = []
    start = launcher.start
    launcher.settings = lambda settings: replace(settings, address="head:6379")
    launcher.start = lambda request: addresses.append(request.address) or start(request)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, out, err = tune_restore(*command, "--no-resume-unfinished")
    assert code == 0, out + err
    assert "all 3 samples drawn now finished" in out
    assert (launcher.asked, addresses) == ([None], ["head:6379"])


def test_a_trainable_for_the_samples_alone_is_checked_before_anything_is_written(
    tune_restore, samples
):
    experiment, launcher = samples(DONE, HUNG, lost=False)

    def refuse(_request, _timeout):
        raise InvalidInputError("m:t is not the recorded trainable.")

    launcher.check = refuse
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0")
    code, _, err = tune_restore(*command, "--no-resume-unfinished")
    assert (code, err) == (2, "error: m:t is not the recorded trainable.\n")
    assert not (experiment / layout.ROOT).exists()


def test_a_signal_that_is_sent_twice_is_one_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    times = iter([10.0, 11.9, 12.0])
    try:
        with sigterm_as_ctrl_c(lambda: next(times)):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("where", "is_free"), [("start_restore", True), ("commit_restore", False)])
def test_ctrl_c_before_and_after_the_trials_is_a_sentence_and_exit_code_130(
    tune_restore, samples, monkeypatch, where, is_free
):
    experiment, launcher = samples(DONE, HUNG, lost=False)
    step = getattr(restore, where)

    def press(*arguments, **options):
        if is_free:
            step(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, where, press)
    command = ("restore", experiment, "--trainable", "m:t", "--stale-after", "0", "--json")
    code, out, err = tune_restore(*command)
    kept = " What the trials have done is kept; run the command again to continue."
    words = "Stopped." if is_free else f"Stopped.{kept}"
    assert (code, out, err.splitlines()[-1]) == (130, "", words)
    assert bool(launcher.started) != is_free
    held = lease.unreleased(open_store(str(experiment)), but="")
    assert (held == []) == is_free


def test_nothing_to_do_is_said_and_is_no_failure(tune_restore, tmp_path):
    make_experiment(tmp_path / "x", [DONE, BAD])
    before = sorted(path.name for path in (tmp_path / "x").iterdir())
    code, out, _ = tune_restore("restore", tmp_path / "x", "--trainable", "m:train")
    assert code == 0
    assert "Nothing to restore" in out
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("restore", "{x}", "--trainable", "no_such_module:train", "--resume-errored"),
            "no_such_module",
        ),
        (("restore", "{x}", "--trainable", "json:dumps", "--resume-errored"), "'train'"),
        (("plan", "{x}", "--strategy", "sideways"), "sideways"),
        (
            ("plan", "/nowhere/at/all"),
            "/nowhere/at/all does not exist.",
        ),
        (
            ("restore", "/nowhere/at/all", "--trainable", "m:t"),
            "/nowhere/at/all does not exist.",
        ),
        (("plan", "s3://conn@bucket/x"), "Airflow has no connection 'conn'"),
        (("restore", "{x}"), "trainable"),
        (("scan", "{x}", "--stale-after", "-1"), "'--stale-after': -1 is less than 0"),
        (("scan", "{x}", "--stale-after", "inf"), "'--stale-after': inf is not a number"),
        (("scan", "{x}", "--stale-after", "1e30"), "'--stale-after': 1e30 is not a number"),
        (("scan", "{x}", "--stale-after", "soon"), "'--stale-after': soon is not a number"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(tune_restore, tmp_path, arguments, words):
    experiment = make_experiment(tmp_path / "x", [BAD])
    code, _, err = tune_restore(*(part.format(x=experiment) for part in arguments))
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert not (experiment / layout.ROOT).exists()


def test_a_coupled_experiment_is_restored_as_a_whole_unless_told_otherwise(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [BAD])
    tuner = (experiment / "tuner.pkl").read_bytes()
    # as TuneConfig(scheduler="…") pickles: the name in the place of None
    name = b"\x8c\x09scheduler\x94N"
    assert name in tuner
    coupled = tuner.replace(name, b"\x8c\x09scheduler\x94\x8c\x03PB2")
    (experiment / "tuner.pkl").write_bytes(coupled)
    _, out, _ = tune_restore("plan", experiment, "--json")
    assert json.loads(out)["strategy"] == "whole_experiment"
    assert "PB2" in json.loads(out)["strategy_reason"]
    _, out, _ = tune_restore("plan", experiment, "--json", "--strategy", "per_trial")
    assert json.loads(out)["strategy"] == "per_trial"
    assert "alone, a trial is not compared with the others" in json.loads(out)["strategy_reason"]


def test_the_newest_valid_state_is_used_and_the_bad_one_named(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [BAD])
    (experiment / "experiment_state-2026-11-24_10-00-00.json").write_bytes(make_state([BAD])[:-50])
    (experiment / "experiment_state-2026-11-25_10-00-00.json").write_bytes(make_state([]))
    _, out, _ = tune_restore("scan", tmp_path, "--json")
    (report,) = json.loads(out)
    assert (report["health"], report["state_file"]) == ("errored", STATE_NAME)
    assert "2026-11-24_10-00-00.json was skipped" in report["reason"]
    assert "2026-11-25_10-00-00.json was skipped: it holds no trials" in report["reason"]


def test_an_unreadable_experiment_is_named_once_in_one_sentence(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [DONE])
    (experiment / STATE_NAME).write_bytes(b'{"trial_data": [["')
    code, _, err = tune_restore("restore", experiment, "--trainable", "m:train")
    assert code == 2
    assert err.count(str(experiment)) == err.count("Nothing was restored.") == 1
    _, out, _ = tune_restore("scan", experiment, "--json")
    (report,) = json.loads(out)
    assert str(experiment) not in report["reason"]
    assert "Nothing was restored" not in report["reason"]


def test_a_driver_in_another_time_zone_does_not_hide_the_newer_state(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [BAD], start_time=1000.0)
    west = "experiment_state-2026-11-23_04-00-00.json"  # later, by a clock six hours behind
    (experiment / west).write_bytes(make_state([DONE], start_time=2000.0))
    _, out, _ = tune_restore("scan", tmp_path, "--json")
    (report,) = json.loads(out)
    assert (report["state_file"], report["health"]) == (west, "finished")
    assert "Ray alone would take the other" in report["reason"]


def failing_twice(directory):
    """Return an experiment with a trial that failed twice at the same place."""
    experiment = make_experiment(directory / "x", [DONE, BAD])
    store = open_store(str(experiment))
    night(store, "r1")
    night(store, "r2")
    age(experiment, 9999)
    return experiment


def test_a_quarantined_trial_is_shown_and_not_run_until_it_is_released(tune_restore, tmp_path):
    experiment = failing_twice(tmp_path)
    assert json.loads(tune_restore("scan", tmp_path, "--json")[1])[0]["quarantined"] == ["bad"]
    assert "1 quarantined" in tune_restore("scan", tmp_path)[1]
    arguments = (experiment, "--resume-errored")
    (_, bad) = sorted(
        json.loads(tune_restore("plan", *arguments, "--json")[1])["trials"],
        key=lambda trial: trial["quarantined"],
    )
    assert (bad["trial_id"], bad["action"]) == ("bad", "keep")
    _, out, _ = tune_restore("plan", *arguments)
    release = f"`tune-restore release {experiment} bad` (in Airflow: the DAG tune_restore_admin)"
    assert f"note: 1 quarantined (bad); {release} lets bad run again" in out
    code, out, err = tune_restore("restore", *arguments, "--trainable", "m:t")
    assert (code, "Nothing to restore" in out) == (0, True)
    assert "1 quarantined (bad)" in " ".join((out + err).split())

    code, out, _ = tune_restore("restore", *arguments, "--trainable", "m:t", "--json")
    nothing = json.loads(out)
    assert (code, nothing["failed"], nothing["quarantined"]) == (0, [], ["bad"])
    assert "1 quarantined (bad)" in nothing["reason"]

    code, out, _ = tune_restore("release", experiment, "bad")
    assert code == 0
    assert "Trial bad runs again with the next restore" in out
    assert "(an ERROR trial: with --resume-errored, resume_errored=True)" in out
    assert "its 2 failed attempts no longer count" in out
    assert json.loads(tune_restore("scan", tmp_path, "--json")[1])[0]["quarantined"] == []
    _, out, _ = tune_restore("plan", *arguments, "--json")
    assert {t["trial_id"]: t["action"] for t in json.loads(out)["trials"]}["bad"] == "resume"


def test_release_prints_json_and_refuses_in_a_sentence(tune_restore, tmp_path):
    experiment = failing_twice(tmp_path)
    code, _, err = tune_restore("release", experiment, "nobody")
    assert (code, "has no trial 'nobody'" in " ".join(err.split())) == (2, True)
    code, out, _ = tune_restore("release", experiment, "bad", "--json")
    released = json.loads(out)
    assert (code, released["trial_id"], len(released["released"])) == (0, "bad", 2)
    code, _, err = tune_restore("release", experiment, "bad")
    assert (code, "is not quarantined" in " ".join(err.split())) == (2, True)


def test_max_attempts_reaches_the_plan(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [DONE, BAD])
    night(open_store(str(experiment)), "r1", cause="actor_died", place="")
    for limit, action in ((1, "keep"), (2, "resume")):
        _, out, _ = tune_restore(
            "plan", experiment, "--resume-errored", "--max-attempts", limit, "--json"
        )
        assert {t["trial_id"]: t["action"] for t in json.loads(out)["trials"]}["bad"] == action
    code, _, err = tune_restore("plan", experiment, "--max-attempts", 0)
    assert (code, "max-attempts" in err) == (2, True)


def test_undo_says_what_it_did_and_when_there_is_nothing_to_undo(tune_restore, tmp_path):
    experiment = failing_twice(tmp_path)
    code, out, _ = tune_restore("undo", experiment, "--yes")
    assert code == 0
    assert "The commit of restore r2 is undone" in out
    code, out, _ = tune_restore("undo", experiment, "--yes", "--json")
    assert json.loads(out)["newest"] == STATE_NAME
    code, _, err = tune_restore("undo", experiment)
    assert code == 2
    assert "No commit can be undone" in " ".join(err.split())


def test_undo_is_refused_with_exit_code_3_while_a_restore_is_at_work(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "x", [DONE, BAD])
    store = open_store(str(experiment))
    night(store, "r1")
    lease.acquire(store, restore_id="other", holder="dag nightly on host 7")
    code, _, err = tune_restore("undo", experiment)
    assert code == 3
    assert "dag nightly on host 7" in err


def test_what_a_restore_is_told_reaches_its_plan(tune_restore, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        "airflow_tune_restore.cli.restore.restore_experiment",
        lambda store, launcher, options, progress: chosen.append(options.prepare.choices),
    )
    command = ["restore", str(tmp_path), "--trainable", "a:b"]
    tune_restore(*command)
    tune_restore(*command, "--remember-scheduler", "--allow-scratch", "--max-attempts", "3")
    told = [(d.remember_scheduler, d.allow_scratch, d.max_attempts) for d in chosen]
    assert told == [(False, False, None), (True, True, 3)]
