"""A night under a real `airflow standalone`, with real Ray: all example DAGs at once.

Sweeps on local disk and on real S3 come back: found by the nightly DAG, noticed by the one that is
woken by events, reported by the task that ran them, or recovered in the same DAG run. Afterwards the
credentials that were planted are searched for wherever anything is left.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.runner.ray_session import STARTS
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow import canary
from tests.support.airflow.names import RELEASE
from tests.support.airflow.standalone import Airflow
from tests.support.experiments.built import make_experiment, make_row
from tests.support.experiments.sweeps import copy_short_sweep, copy_sweep, ends, statuses_in
from tests.support.records import prepare_night
from tests.support.storage.servers import Server

NIGHTLY, BY_EVENT = "nightly_recovery", "event_driven_recovery"
# see the fixture `dags`
WATCHED, STALE_AFTER, ASSET = "watched", 20.0, "of_event_driven_recovery"
DAY_SECONDS = 24 * 60 * 60.0
ALL_DONE = [("TERMINATED", 6)] * 4
SHORT_DONE = [("TERMINATED", 6)] * 2


@dataclass
class Night:
    """What was begun, by DAG: the directory, and the id of the run."""

    running: Airflow
    s3: Server
    commands: canary.CommandLines
    directories: dict[str, Path] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    without_failures: str = ""

    def begin(self, dag_id: str, directory: Path, **conf: object) -> None:
        self.directories[dag_id] = directory
        self.runs[dag_id] = self.running.trigger(dag_id, conf)

    def end_of_sweep(self, dag_id: str) -> tuple[str, str, Path]:
        """Return the state and the id of the run, and the experiment that it made."""
        directory = self.directories[dag_id]
        for left in reversed(range(STARTS)):
            run_id = self.runs[dag_id]
            state = self.running.finish(dag_id, run_id)
            if made := list(directory.glob("sweep_*")):
                return state, run_id, made[0]
            if left:  # a Ray that did not start in time leaves no experiment
                self.begin(dag_id, directory, storage_path=str(directory))
        raise AssertionError(self.running.log_tail())


def make_teams(prefix: Path) -> None:
    """Make the sweeps of three teams: a large config, a metric that is NaN, a misfit, a leased one."""
    large = copy_sweep("errored", prefix / "team_a" / "errored")
    edit_rows(large, lambda trial, _run: trial["config"].update(table=list(range(100_000))))
    without_metric = copy_short_sweep(prefix / "team_b" / "killed")
    edit_rows(without_metric, lambda _trial, run: lose_score(run["last_result"]))
    another = [make_row("t", status="ERROR", trainable_name="another")]
    make_experiment(prefix / "team_c" / "misfit", another)
    leased = make_experiment(prefix / "team_c" / "leased", [make_row("t", status="ERROR")])
    prepared = prepare_night(open_store(str(leased)), "another-night")
    start_plan(prepared, holder="another night", ttl_seconds=DAY_SECONDS)


def lose_score(result: dict) -> None:
    """Make the score of a trial that has reported one NaN."""
    if "score" in result:
        result["score"] = math.nan


def edit_rows(experiment: Path, edit: Callable[[dict, dict], None]) -> None:
    """Edit the trial and the metadata in each row of the newest state."""
    path = max(experiment.glob("experiment_state-*.json"))
    state = json.loads(path.read_text())
    for row in state["trial_data"]:
        trial, run = map(json.loads, row)
        edit(trial, run)
        row[:] = map(json.dumps, (trial, run))
    path.write_text(json.dumps(state))


@pytest.fixture(scope="module")
def night(running: Airflow, seaweed: Server, tmp_path_factory) -> Iterator[Night]:
    """Begin everything; each test waits for what it is about."""
    reports, recovers, sweeps, nothing, watched = (
        tmp_path_factory.mktemp(name)
        for name in ("reports", "recovers", "sweeps", "nothing", "watched")
    )
    copy_sweep("errored", reports / "another")
    make_teams(sweeps)
    with canary.CommandLines() as commands:
        night = Night(running, seaweed, commands)
        running.unpause("recover_experiment")
        night.begin(NIGHTLY, nothing, prefix=str(nothing))
        night.without_failures = night.runs[NIGHTLY]
        night.begin("sweep_that_reports", reports, storage_path=str(reports))
        night.begin("sweep_with_recovery", recovers, storage_path=str(recovers))
        running.unpause(BY_EVENT)
        running.parse(BY_EVENT)
        seaweed.upload(copy_short_sweep(watched / "dying"), f"{WATCHED}/dying")
        night.begin(NIGHTLY, sweeps, prefix=str(sweeps), stale_after=0)
        yield night
    running.pause(BY_EVENT)


def test_nightly_recovery_finds_resumes_and_commits(night, running):
    run_id, sweeps = night.runs[NIGHTLY], night.directories[NIGHTLY]
    assert running.finish(NIGHTLY, run_id) == "success", running.log_tail()
    assert running.states(NIGHTLY, run_id) == {
        "restore.find": ["success"],
        "restore.plan": ["success"],
        "restore.trial": ["success"] * 2,
        "restore.commit": ["success"],
        "restore.continue_search": ["skipped"] * 2,
        "restore.done": ["success"],
    }
    trials = [t for t in running.tasks(NIGHTLY, run_id) if t["task_id"] == "restore.trial"]
    labels = {trial["rendered_map_index"]: trial["map_index"] for trial in trials}
    assert sorted(label.split()[0] for label in labels) == ["errored", "killed"]
    log = running.task_log(NIGHTLY, run_id, "restore.find")
    assert "4 experiments; 2 errored, 1 interrupted, 1 running" in log
    errored = next(index for label, index in labels.items() if label.startswith("errored"))
    log = running.task_log(NIGHTLY, run_id, "restore.trial", errored)
    assert "iteration 3, " not in log
    assert "iteration 4, score=0.9375" in log
    for index in labels.values():
        assert "iteration 6, score=" in running.task_log(NIGHTLY, run_id, "restore.trial", index)
    log = running.task_log(NIGHTLY, run_id, "restore.commit")
    table = [line for line in log.splitlines() if line.startswith(" ")]
    assert sum("TERMINATED" in line for line in table) == 6
    assert sum("3 → 6" in line for line in table) == 1
    assert sum("2 → 6" in line for line in table) == 1
    assert "what happened" in log
    assert log.count(": resumed from checkpoint_") == 2
    assert ends(sweeps / "team_a" / "errored") == ALL_DONE
    assert ends(sweeps / "team_b" / "killed") == SHORT_DONE


def test_the_night_of_three_teams_ends_with_what_became_of_each_experiment(night, running):
    run_id, sweeps = night.runs[NIGHTLY], night.directories[NIGHTLY]
    assert running.finish(NIGHTLY, run_id) == "success", running.log_tail()
    lines = running.xcom(NIGHTLY, run_id, "restore.commit", "experiments")
    found = {line["experiment"]: (line["outcome"], line["trials_finished"]) for line in lines}
    assert found == {
        f"{sweeps}/team_a/errored": ("restored", 1),
        f"{sweeps}/team_b/killed": ("restored", 1),
        f"{sweeps}/team_c/misfit": ("misfit", 0),
        f"{sweeps}/team_c/leased": ("left_alone", 0),
    }
    reasons = {line["experiment"]: line["reason"] for line in lines}
    assert all(reasons.values())
    holder = "restore another-night of another night is running on it"
    assert holder in reasons[f"{sweeps}/team_c/leased"]
    log = running.task_log(NIGHTLY, run_id, "restore.commit")
    _, headline, table = log.partition("4 experiments: 1 misfit, 2 restored, 1 left alone")
    assert headline
    assert all(experiment in table for experiment in found)
    outcomes = running.xcom(NIGHTLY, run_id, "restore.plan", "outcomes")
    assert len(outcomes) == len(lines) - 1  # the leased one was not returned


def test_a_sweep_that_fails_in_its_task_reports_itself_and_just_it_is_recovered(night, running):
    state, _, experiment = night.end_of_sweep("sweep_that_reports")
    assert state == "failed"
    dag_id, conf = "recover_experiment", {"stale_after": 0, "experiment": str(experiment)}
    (run,) = running.eventually(lambda: [r for r in running.runs(dag_id) if r["conf"] == conf])
    assert len(running.runs(dag_id)) == len(running.runs("sweep_that_reports"))
    assert running.finish(dag_id, run["dag_run_id"]) == "success", running.log_tail()
    assert ends(experiment) == SHORT_DONE
    assert not (experiment.parent / "another" / ".tune_restore").exists()


def test_a_sweep_that_fails_is_restored_by_the_retry_of_its_task(night, running):
    state, run_id, experiment = night.end_of_sweep("sweep_with_recovery")
    assert state == "success", running.log_tail()
    (task,) = running.tasks("sweep_with_recovery", run_id)
    assert (task["state"], task["try_number"]) == ("success", 2)
    log = running.whole_log("sweep_with_recovery", run_id, "sweep")
    assert "1 of 2 trials finished, and 1 did not" in log
    assert ends(experiment) == SHORT_DONE


def test_a_sweep_that_dies_while_it_is_watched_is_recovered_once(night, running):
    # Airflow 3.3.2 answers 500 when asked for events whose DAG run has not begun
    (run,) = running.eventually(lambda: [r for r in running.runs(BY_EVENT) if r["start_date"]])
    assert running.finish(BY_EVENT, run["dag_run_id"]) == "success", running.log_tail()
    (event,) = running.asset_events(ASSET)
    address = f"s3://seaweed@{night.s3.bucket}/{WATCHED}/dying"
    assert event["extra"]["payload"]["experiments"] == [address]
    store, place = night.s3.filesystem(), f"{night.s3.bucket}/{WATCHED}/dying"
    first, restored = sorted(store.glob(f"{place}/experiment_state-*"))
    assert "_r" in Path(restored).name
    assert statuses_in(store.cat_file(restored)) == SHORT_DONE
    silent = datetime.fromisoformat(event["timestamp"]) - store.info(first)["LastModified"]
    assert silent.total_seconds() > STALE_AFTER - 1  # the store tells whole seconds
    log = running.task_log(BY_EVENT, run["dag_run_id"], "restore.find")
    assert "newest write to its root" in log
    assert f"{address}: restore " in running.task_log(BY_EVENT, run["dag_run_id"], "restore.plan")
    log = running.task_log(BY_EVENT, run["dag_run_id"], "restore.commit")
    assert ": 1 resumed trial finished" in log
    # what was reported is remembered, and looking again changes nothing
    if RELEASE >= (3, 3):
        running.eventually(lambda: running.remembered(ASSET))
    place = f"{night.s3.bucket}/{WATCHED}"
    seen = running.polls(place)
    running.eventually(lambda: running.polls(place) >= seen + 2)
    assert len(running.runs(BY_EVENT)) == len(running.asset_events(ASSET)) == 1


def test_a_night_without_failures_is_skipped_and_succeeds(night, running):
    run_id = night.without_failures
    assert running.finish(NIGHTLY, run_id) == "success"
    found = running.states(NIGHTLY, run_id)
    assert found.pop("restore.done") == ["success"]
    assert set(map(tuple, found.values())) == {("skipped",)}


def test_a_planted_credential_is_found_nowhere(night, running, canaries, ray_sessions):
    (run,) = running.eventually(lambda: [r for r in running.runs(BY_EVENT) if r["start_date"]])
    assert running.finish(BY_EVENT, run["dag_run_id"]) == "success"
    places = {
        **canary.objects(night.s3, f"{night.s3.bucket}/{WATCHED}"),
        **canary.values(running.home / "airflow.db"),
        **canary.files(running.home),
        **canary.files(ray_sessions),
        "command lines": b"\n".join(night.commands.seen),
    }
    assert_searched(places)
    assert canary.leaks(places, canaries.all) == []


def assert_searched(places: dict[str, bytes]) -> None:
    """Whether all was there that could have told: nothing is found in what was never written."""
    for name in ("/plan.json", "/outcome.json", "/state.json", "/standalone.log", "/airflow.db"):
        assert any(place.endswith(name) for place in places), name
    for table in ("xcom", "rendered_task_instance_fields", "serialized_dag", "connection"):
        assert places[f"table {table}"]
    assert any("/logs/" in place and "session_" in place for place in places)
    logs = [body for place, body in places.items() if "/task_id=restore.trial/" in place]
    assert any(b"attempt 1 of restore" in body for body in logs)
    assert b"airflow_tune_restore.runner" in places["command lines"]
    assert b"raylet" in places["command lines"]
