"""One restore, live: each trial's state, iteration and metric, for a handful of requests."""

import json
import math
from datetime import timedelta
from itertools import product

import pytest

from airflow_tune_restore.exceptions import KeyNotFoundError, RecordUnreadableError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import QUIET_SECONDS, AttemptRecords
from airflow_tune_restore.protocol.lease_objects import DagRunId, HolderStatus
from airflow_tune_restore.protocol.ray_job import IN_CLUSTER, submission_id
from airflow_tune_restore.protocol.request import (
    ProgressTail,
    Result,
    RunnerExit,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.views import attempts, progress
from airflow_tune_restore.views.progress import RestoreProgress, view_progress
from tests.support.experiments.built import KILLED, STATE_NAME, make_row, make_state
from tests.support.planted import PLANTS, check_sent, encode, leaves, plant
from tests.support.records import (
    FAILURE,
    Attempt,
    beat,
    leave_attempt,
    leave_outcome,
    make_outcome,
    prepare_night,
    start_night,
)
from tests.support.storage.counting import BucketStore, Clock

WHOLE, SHARED = layout.WHOLE_EXPERIMENT, layout.SHARED_DRIVER
ON_CLUSTER = RunnerSettings(trainable="m:train", address=IN_CLUSTER)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    """Return a store with an experiment of failed trials."""

    def made(*trial_ids):
        store = BucketStore.new(clock)
        store.put("tuner.pkl", (KILLED / "tuner.pkl").read_bytes())
        rows = [
            make_row(each, status="ERROR", error=True, last_result={"training_iteration": 2})
            for each in trial_ids
        ]
        store.put(STATE_NAME, make_state(rows))
        return store

    return made


@pytest.fixture
def store(make):
    return make("a", "b")


def seen(store, reader=None):
    view = reader.look() if reader else view_progress(store, "r1")
    json.dumps(view, allow_nan=False)
    check_sent(view, trials=len(view["trials"]) + 1)
    assert sum(view["counts"].values()) == len(view["trials"]) + view["hidden"]
    return view


def row_of(view, trial_id):
    (row,) = (row for row in view["trials"] if row["trial_id"] == trial_id)
    return row


def report(store, unit, *reports, attempt=1):
    """Leave reports: (trial, iteration, score)."""
    made = [RunnerProgress(trial_id=t, iteration=i, metrics={"score": s}) for t, i, s in reports]
    store.put(
        layout.progress_key("r1", unit, attempt), ProgressTail(first=0, reports=made).to_json()
    )


def claim(store, plan, unit, **how):
    return claim_attempt(store, plan, unit, RunnerSettings(trainable="m:train", **how))


def test_before_any_attempt_every_trial_waits(store):
    start_night(store, "r1")
    view = seen(store)
    assert view["counts"] == {"waiting": 2}
    assert (view["is_over"], view["whole"], view["pending"]) == (False, None, 0)
    assert row_of(view, "a") == {
        "trial_id": "a", "state": "waiting", "attempt": 0, "attempts": 0, "iteration": 0,
        "metric": "score", "value": None, "heard": None, "error": "", "cause": "", "ray_job": None,
    }  # fmt: skip


def test_a_claimed_attempt_waits_until_its_first_heartbeat(store, clock):
    plan = start_night(store, "r1")
    request = claim(store, plan, "a")
    assert row_of(seen(store), "a")["state"] == "waiting"
    beat(store, request)
    report(store, "a", ("a", 3, 0.25), ("a", 4, 0.5))
    clock.now += timedelta(seconds=QUIET_SECONDS - 1)
    row = row_of(seen(store), "a")
    assert (row["state"], row["heard"]) == ("running", QUIET_SECONDS - 1)
    assert (row["iteration"], row["value"], row["attempt"]) == (4, 0.5, 1)
    clock.now += timedelta(seconds=2)
    assert row_of(seen(store), "a")["state"] == "silent"


def test_a_heartbeat_in_the_future_is_just_heard(store, clock):
    plan = start_night(store, "r1")
    clock.now += timedelta(hours=1)
    beat(store, claim(store, plan, "a"))
    clock.now -= timedelta(hours=1)
    row = row_of(seen(store), "a")
    assert (row["state"], row["heard"]) == ("running", 0.0)


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ("finished", "finished"), ("failed", "failed"), ("refused", "failed"),
        ("interrupted", "interrupted"), ("fenced", "interrupted"), ("paused", "paused"),
    ],
)  # fmt: skip
def test_an_outcome_is_the_state_of_its_trial(store, result, state):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a", result=result, iteration=7, metrics={"score": 0.75})
    row = row_of(seen(store), "a")
    assert (row["state"], row["iteration"], row["value"]) == (state, 7, 0.75)
    if result == "failed":
        assert (row["error"], row["cause"]) == ("ValueError: no", FAILURE["cause"])


@pytest.mark.parametrize("value", ["best", True, None, math.nan])
def test_a_metric_that_is_not_a_number_of_json_is_none(store, value):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a", iteration=7, metrics={"score": value})
    assert row_of(seen(store), "a")["value"] is None


def test_a_newer_attempt_counts_and_an_older_outcome_does_not(store):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a", result="failed")
    beat(store, claim(store, plan, "a"))
    row = row_of(seen(store), "a")
    assert (row["state"], row["attempt"], row["attempts"]) == ("running", 2, 2)


def test_a_runner_that_died_is_a_failure_with_its_cause(store):
    plan = start_night(store, "r1")
    request = claim(store, plan, "a")
    beat(store, request)
    AttemptRecords.of(store, request).record_exit(1, 137, "line\nOOMKilled")
    row = row_of(seen(store), "a")
    assert (row["state"], row["cause"]) == ("failed", "out_of_memory")
    assert "137" in row["error"]


def test_an_attempt_that_nobody_began_waits_for_the_next_one(store):
    plan = start_night(store, "r1")
    AttemptRecords.of(store, claim(store, plan, "a")).record_exit(1, None, "the driver broke off")
    assert row_of(seen(store), "a")["state"] == "waiting"


def test_after_the_commit_it_is_over_and_nothing_runs(store):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a")
    leave_attempt(store, plan, "b")
    commit_restore(store, "r1")
    beat(store, Attempt("r1", "b", 2))
    view = seen(store)
    assert view["is_over"]
    row = row_of(view, "b")
    assert (row["state"], row["heard"]) == ("interrupted", None)
    assert "without recording an outcome" in row["error"]


def test_a_committed_restore_has_no_note_and_its_shared_driver_has_just_ended(store):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a")
    leave_attempt(store, plan, "b")
    beat(store, Attempt("r1", SHARED, 1))
    commit_restore(store, "r1")
    view = seen(store)
    assert view["note"] == ""
    assert (view["whole"]["state"], view["whole"]["error"]) == ("ended", "")


def test_a_restore_whose_holder_has_ended_says_that_it_was_not_committed(store):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "a")
    assert seen(store)["note"] == ""  # its lease is alive
    dead = HolderStatus(has_ended=True, found="Its DAG run is failed")
    note = RestoreProgress(store, "r1").look(lambda _status: dead)["note"]
    assert note.startswith("It was not committed. The next restore commits")
    assert note.endswith("Its DAG run is failed.")


def test_a_restore_whose_lease_is_released_says_that_it_was_not_committed(store):
    start_night(store, "r1")
    lease.release(store, lease.check_held(store, "r1"))
    assert seen(store)["note"].startswith("It was not committed.")


def test_the_dag_run_is_that_of_the_lease(store):
    dag_run = DagRunId(dag_id="nightly", run_id="r__1", started_at="2026-01-01T00:00:00+00:00")
    start_plan(prepare_night(store, "r1"), holder="x", dag_run=dag_run)
    assert seen(store)["dag_run"] == {"dag_id": "nightly", "run_id": "r__1"}


def test_a_ray_job_is_named_only_while_it_runs(store):
    plan = start_night(store, "r1")
    request = claim(store, plan, "a", address=IN_CLUSTER)
    beat(store, request)
    beat(store, claim(store, plan, "b"))
    view = seen(store)
    assert row_of(view, "a")["ray_job"] == submission_id(store.uri, "r1", "a", 1)
    assert row_of(view, "b")["ray_job"] is None
    leave_outcome(store, request)
    assert row_of(seen(store), "a")["ray_job"] is None


def leave_snapshot(store, *rows, trial_id="a"):
    store.put(layout.snapshot_key("r1", trial_id, 1), make_state(list(rows)))


def test_without_reports_the_snapshot_says_how_far_a_trial_has_come(store):
    plan = start_night(store, "r1")
    beat(store, claim(store, plan, "a"))
    row = make_row("a", last_result={"training_iteration": 8, "score": 0.5})
    leave_snapshot(store, row)
    found = row_of(seen(store), "a")
    assert (found["state"], found["iteration"], found["value"]) == ("running", 8, 0.5)
    report(store, "a", ("a", 9, 0.75))
    assert row_of(seen(store), "a")["iteration"] == 9


def test_a_snapshot_that_is_odd_is_not_shown(store, monkeypatch):
    plan = start_night(store, "r1")
    beat(store, claim(store, plan, "a"))
    row = make_row("a", last_result={"training_iteration": 8, "score": math.nan})
    leave_snapshot(store, row)
    assert (row_of(seen(store), "a")["iteration"], row_of(seen(store), "a")["value"]) == (8, None)
    monkeypatch.setattr(attempts, "MOST_SNAPSHOT_BYTES", 10)
    assert row_of(seen(store), "a")["iteration"] == 0
    monkeypatch.undo()
    leave_snapshot(store, row, make_row("b"))
    assert row_of(seen(store), "a")["iteration"] == 0
    for body in GARBAGE:
        store.put(layout.snapshot_key("r1", "a", 1), body)
        assert row_of(seen(store), "a")["iteration"] == 0


def test_trials_that_share_a_driver_have_their_own_signs_of_life_and_its_job(store):
    plan = start_night(store, "r1")
    for number in (1, 2):
        driver = claim_attempt(store, plan, SHARED, ON_CLUSTER, attempt=number)
    beat(store, driver)
    beat(store, claim(store, plan, "a", address=IN_CLUSTER, is_shared=True))
    report(store, "a", ("a", 5, 0.5))
    view = seen(store)
    row = row_of(view, "a")
    job = submission_id(store.uri, "r1", SHARED, 2)
    assert (row["state"], row["iteration"], row["ray_job"]) == ("running", 5, job)
    assert row_of(view, "b")["state"] == "waiting"
    whole = view["whole"]
    assert (whole["trial_id"], whole["state"], whole["ray_job"]) == (SHARED, "running", job)


@pytest.fixture
def whole(store):
    """Return the plan of a restore in which one run runs all trials."""
    return start_night(store, "r1", strategy="whole_experiment")


def test_a_run_of_all_trials_waits_like_them(store, whole):
    view = seen(store)
    assert view["counts"] == {"waiting": 2}
    assert (view["whole"]["trial_id"], view["whole"]["state"]) == (WHOLE, "waiting")


def test_the_heartbeat_of_the_run_is_that_of_its_trials(store, whole, clock):
    beat(store, claim(store, whole, WHOLE, address=IN_CLUSTER))
    report(store, "a", ("a", 3, 0.25))
    clock.now += timedelta(seconds=5)
    view = seen(store)
    row = row_of(view, "a")
    job = submission_id(store.uri, "r1", WHOLE, 1)
    assert (row["state"], row["heard"], row["iteration"]) == ("running", 5, 3)
    assert (row["ray_job"], view["whole"]["ray_job"]) == (job, job)
    assert row_of(view, "b")["state"] == "waiting"
    clock.now += timedelta(seconds=QUIET_SECONDS)
    view = seen(store)
    assert (row_of(view, "a")["state"], view["whole"]["state"]) == ("silent", "silent")


def test_trials_without_a_task_report_through_the_run_and_so_do_samples(store, whole):
    beat(store, claim(store, whole, WHOLE))
    report(store, WHOLE, ("b", 3, 0.1), ("new", 1, 0.2), ("b", 4, math.inf))
    leave_outcome(store, Attempt("r1", "newer"), iteration=9)
    view = seen(store)
    assert (row_of(view, "b")["iteration"], row_of(view, "b")["value"]) == (4, None)
    assert (row_of(view, "new")["state"], row_of(view, "new")["value"]) == ("running", 0.2)
    assert (row_of(view, "newer")["state"], row_of(view, "newer")["iteration"]) == ("finished", 9)
    assert view["whole"]["iteration"] is None


def test_a_trial_that_a_run_stopped_goes_on_in_the_next_run(store, whole):
    leave_outcome(store, claim(store, whole, WHOLE), "interrupted")
    leave_outcome(store, Attempt("r1", "a"), "interrupted")
    leave_outcome(store, Attempt("r1", "b"), "failed")
    assert seen(store)["counts"] == {"failed": 1, "interrupted": 1}
    beat(store, claim(store, whole, WHOLE))
    assert seen(store)["counts"] == {"failed": 1, "waiting": 1}
    report(store, "a", ("a", 6, 0.5), attempt=2)
    row = row_of(seen(store), "a")
    assert (row["state"], row["attempt"], row["iteration"]) == ("running", 2, 6)


@pytest.mark.parametrize(("result", "state"), [("paused", "paused"), ("failed", "interrupted")])
def test_a_trial_of_a_run_that_ended_has_stopped_with_it(store, whole, result, state):
    leave_outcome(store, claim(store, whole, WHOLE), result, error="gone")
    report(store, "a", ("a", 3, 0.25))
    row = row_of(seen(store), "a")
    assert (row["state"], row["iteration"], row["heard"]) == (state, 3, None)


def test_a_thousand_trials_of_which_three_live_cost_a_handful_of_requests(make):
    store = make(*(f"t{n}" for n in range(1000)))
    plan = start_night(store, "r1")
    for trial_id in ("t1", "t2", "t3"):
        beat(store, claim(store, plan, trial_id))
        report(store, trial_id, (trial_id, 3, 0.5))
    store.asked.clear()
    reader = RestoreProgress(store, "r1")
    assert seen(store, reader)["counts"] == {"running": 3, "waiting": 997}
    # plan, commit record, lease and claim, the walk; then the request and the reports of each live one
    assert store.asked.total() <= 6 + 2 * 3
    store.asked.clear()
    seen(store, reader)
    assert store.asked.total() <= 3 + 3


def test_the_leases_of_older_restores_cost_nothing(store):
    for number in range(200):
        store.put(layout.lease_claim_key(number + 1), b"{}")
        store.put(layout.lease_release_key(number + 1), b"{}")
    start_night(store, "r1")
    store.asked.clear()
    seen(store)
    # plan, commit record, claim and its heartbeat; and the claim again: who holds the lease now
    assert store.asked["get"] <= 2 + 3


def test_how_an_attempt_ended_is_read_once(make):
    store = make(*(f"t{n}" for n in range(50)))
    start_night(store, "r1")
    for number in range(50):
        leave_outcome(store, Attempt("r1", f"t{number}"), iteration=5)
    reader = RestoreProgress(store, "r1")
    assert seen(store, reader)["counts"] == {"finished": 50}
    store.asked.clear()
    assert seen(store, reader)["counts"] == {"finished": 50}
    assert store.asked["get"] <= 4  # the commit record, and the lease


def test_a_runner_that_was_taken_for_dead_may_leave_an_outcome_after_all(store):
    plan = start_night(store, "r1")
    request = claim(store, plan, "a")
    beat(store, request)
    AttemptRecords.of(store, request).record_exit(1, None, "lost")
    reader = RestoreProgress(store, "r1")
    assert row_of(seen(store, reader), "a")["state"] == "failed"
    leave_outcome(store, request)
    assert row_of(seen(store, reader), "a")["state"] == "finished"


def test_many_ends_are_read_in_several_looks(make, monkeypatch):
    monkeypatch.setattr(progress, "MOST_READS", 2)
    store = make("a", "b", "c")
    start_night(store, "r1")
    for trial_id in "abc":
        leave_outcome(store, Attempt("r1", trial_id), "failed")
    reader = RestoreProgress(store, "r1")
    view = seen(store, reader)
    assert (view["pending"], view["counts"]) == (1, {"failed": 2, "ended": 1})
    assert (seen(store, reader)["pending"], seen(store, reader)["counts"]) == (0, {"failed": 3})


def test_of_too_many_trials_those_that_live_are_shown(make, monkeypatch):
    monkeypatch.setattr(progress, "MAX_TRIALS", 1)
    store = make("a", "b", "c")
    plan = start_night(store, "r1")
    beat(store, claim(store, plan, "c"))
    view = seen(store)
    assert [row["trial_id"] for row in view["trials"]] == ["c"]
    assert view["hidden"] == 2


def test_a_look_writes_nothing(store):
    plan = start_night(store, "r1")
    beat(store, claim(store, plan, "a"))
    before = dict(store._objects)
    seen(store)
    assert store._objects == before


@pytest.mark.parametrize("restore_id", ["r9", "..", "../..", "lease", ""])
def test_a_restore_that_does_not_exist_is_an_error(store, restore_id):
    start_night(store, "r1")
    with pytest.raises(KeyNotFoundError):
        view_progress(store, restore_id)


def test_a_plan_of_garbage_is_an_error_of_this_package(store):
    start_night(store, "r1")
    store.put(layout.plan_key("r1"), b"[" * 50_000)
    with pytest.raises(RecordUnreadableError, match="plan"):
        view_progress(store, "r1")


OF_ATTEMPT = {
    layout.request_key: lambda: RunnerRequest(
        experiment="x", restore_id="r1", trial_id="a", attempt=1, trainable="m:t",
        trainable_name="t", action="resume", address=IN_CLUSTER,
    ),
    layout.heartbeat_key: lambda: RunnerExit(),
    layout.progress_key: lambda: ProgressTail(
        first=0, reports=[RunnerProgress(trial_id="a", iteration=3, metrics={"score": 0.5})]
    ),
    layout.outcome_key: lambda: make_outcome(
        Attempt("r1", "a"), "failed", iteration=3, metrics={"score": 0.5}
    ),
    layout.exit_key: lambda: RunnerExit(exit_code=1, message="gone"),
}  # fmt: skip
"""The records of an attempt by the function that names their key."""

GARBAGE = [b"", b"{}", b"[]", b"null", b"[" * 50_000, b"\xff\xfe", b"9" * 5000]


@pytest.mark.parametrize("there", list(product([False, True], repeat=len(OF_ATTEMPT))))
def test_every_mix_of_records_is_one_state_and_garbage_in_any_costs_its_trial_alone(store, there):
    plan = start_night(store, "r1")
    beat(store, claim(store, plan, "b"))
    keys = [key("r1", "a", 1) for key, is_there in zip(OF_ATTEMPT, there, strict=True) if is_there]
    for key, record in OF_ATTEMPT.items():
        if key("r1", "a", 1) in keys:
            store.put(key("r1", "a", 1), record().to_json())
    assert row_of(seen(store), "b")["state"] == "running"
    for key in keys:
        for body in GARBAGE:
            before = store.get(key)
            store.put(key, body)
            assert row_of(seen(store), "b")["state"] == "running"
            store.put(key, before)


@pytest.mark.parametrize("key", list(OF_ATTEMPT), ids=lambda key: key("r", "t", 1)[-14:])
def test_no_field_of_a_record_shows_escapes_or_costs_the_others(store, key):
    plan = start_night(store, "r1")
    beat(store, claim(store, plan, "b"))
    beat(store, Attempt("r1", "a"))
    document = json.loads(OF_ATTEMPT[key]().to_json())
    for path in leaves(document):
        for value in PLANTS.values():
            store.put(key("r1", "a", 1), encode(plant(document, path, value)))
            view = seen(store)
            assert row_of(view, "b")["state"] == "running", path
            assert row_of(view, "a")["state"] in progress._STATES


def test_each_result_has_a_state():
    for result in Result:
        assert attempts._STATES[result] in progress._STATES


def test_garbage_in_the_place_of_the_commit_record_does_not_hide_the_trials(store):
    start_night(store, "r1")
    store.put(layout.commit_key("r1"), b"[" * 1000)
    assert seen(store)["counts"] == {"waiting": 2}


def test_odd_names_below_a_restore_are_not_trials(store, whole):
    for name in ("%2E%2E", "a%0Ab", "x%E2%80%AEy", "%2A", "%2A%2A"):
        leave = f"{layout.trials_dir('r1')}/{name}/attempts/000001/outcome.json"
        store.put(leave, b"{}")
    store.put(f"{layout.trials_dir('r1')}/odd/attempts/x/outcome.json", b"{}")
    assert {row["trial_id"] for row in seen(store)["trials"]} == {"a", "b"}
