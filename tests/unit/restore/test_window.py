"""The end of a window in the records: what is claimed, what is final, and what the commit shows."""

from datetime import UTC, datetime, timedelta

import pytest

from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.protocol import attempts, layout, window
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import classify_exit
from airflow_tune_restore.protocol.request import (
    EXIT_PAUSED,
    ProgressTail,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.follow import Follower
from airflow_tune_restore.restore.ledger import read_failures, read_ledger
from airflow_tune_restore.restore.paused import RestorePausedError, find_final_outcome
from airflow_tune_restore.restore.plan import RestorePlan, read_part, read_plan
from airflow_tune_restore.restore.prepare import plan_restore, prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.runner_death import record_death
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import beat, leave_attempt, leave_outcome, prepare_night

NINE = datetime(2026, 11, 30, 21, 0, tzinfo=UTC)
SEVEN = datetime(2026, 12, 1, 6, 0, tzinfo=UTC)
ENDED = "the window of this restore ended at 2026-12-01 06:00:00 UTC"
SETTINGS = RunnerSettings(trainable="m:train")


class Clock:
    """The store's clock."""

    now = NINE

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    """A commit does not wait for a runner that is silent."""
    monkeypatch.setattr(attempts, "QUIET_SECONDS", 0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock):
    made = MemoryStore(clock=clock)
    rows = [
        make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 2}),
        make_row("hung", status="RUNNING", last_result={"training_iteration": 1}),
    ]
    made.put(STATE_NAME, make_state(rows))
    return made


def start(store, **choices) -> RestorePlan:
    prepared = prepare_night(store, "r1", **choices)
    options = PrepareOptions(choices=prepared.options.choices, pause_at=SEVEN)
    return start_plan(plan_restore(store, "r1", options), holder="test")


def test_the_end_is_in_the_plan_in_each_part_of_it_and_in_each_request(store):
    plan = start(store)
    assert plan.pause_at == read_part(store, "r1", "bad").pause_at == SEVEN.isoformat()
    assert claim_attempt(store, plan, "bad", SETTINGS).pause_at == SEVEN.isoformat()
    assert start_plan(prepare_night(MemoryStoreOf(store), "r2"), holder="x").pause_at == ""


def MemoryStoreOf(store) -> MemoryStore:  # noqa: N802
    made = MemoryStore()
    made.put(STATE_NAME, store.get(STATE_NAME))
    return made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "\x1b[31m",
        "7" * 99,
    ],
)
def test_a_moment_that_is_none_is_no_end(store, text):
    plan = start(store)
    body = plan.to_json().replace(SEVEN.isoformat().encode(), text.encode("unicode_escape"))
    assert RestorePlan.from_json(body.replace(rb"\x1b", rb"\u001b")).pause_at == ""
    assert window.parse_end(text) is None
    assert not window.is_over(text, SEVEN)


def test_a_request_of_an_older_version_has_no_end(store):
    request = claim_attempt(store, start(store), "bad", SETTINGS)
    body = request.to_json().replace(b'"pause_at"', b'"unknown"')
    assert RunnerRequest.from_json(body).pause_at == ""


def test_nothing_is_claimed_from_the_end_on(store, clock):
    plan = start(store)
    clock.now = SEVEN - timedelta(seconds=1)
    claim_attempt(store, plan, "bad", SETTINGS)
    clock.now = SEVEN
    with pytest.raises(RestorePausedError, match=f"hung of .* is not run any further: {ENDED}"):
        claim_attempt(store, plan, "hung", SETTINGS)
    assert AttemptRecords(store, "r1", "hung").numbers() == []


def test_after_an_attempt_that_has_paused_none_is_claimed_though_clocks_differ(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", result="paused", iteration=3)
    with pytest.raises(RestorePausedError, match=f"bad of .* was paused at iteration 3: {ENDED}"):
        claim_attempt(store, plan, "bad", SETTINGS)


@pytest.mark.parametrize(
    ("result", "before", "after"),
    [
        ("finished", True, True),
        ("paused", True, True),
        ("failed", False, True),  # no retry can run it again
        ("interrupted", False, False),  # a retry is refused, with the reason
    ],
)
def test_which_outcome_of_an_earlier_try_is_final(store, clock, result, before, after):
    plan = start(store)
    leave_attempt(store, plan, "bad", result=result)
    assert (find_final_outcome(store, plan, "bad") is not None) is before
    clock.now = SEVEN
    assert (find_final_outcome(store, plan, "bad") is not None) is after


def test_the_commit_shows_paused_trials_as_paused_and_the_ledger_counts_none(store, clock):
    plan = start(store)
    leave_attempt(store, plan, "hung", result="paused", iteration=5)
    clock.now = SEVEN + timedelta(minutes=1)
    summary = commit_restore(store, "r1")
    assert [change.trial_id for change in summary.paused] == ["bad", "hung"]
    assert (summary.failed, summary.is_done, summary.broke_off) == ((), False, "")
    assert "0 of 2 resumed trials finished, 2 paused until the next restore" in summary.headline()
    hung = next(change for change in summary.changes if change.trial_id == "hung")
    assert (hung.iteration_after, hung.has_advanced, hung.end) == (5, True, "paused")
    assert hung.note == "the window ended at 2026-12-01 06:00:00 UTC"
    assert hung.note in summary.table()
    assert summary.describe_changes()[0]["is_paused"] is True
    assert read_ledger(store)[0].trials == {}


@pytest.mark.parametrize("strategy", ["per_trial", "whole_experiment"])
def test_the_next_restore_begins_at_once_by_the_default_silence(store, clock, strategy):
    plan = start(store, strategy=strategy)
    row = make_row("hung", status="PAUSED", last_result={"training_iteration": 5})
    if strategy == "per_trial":
        leave_attempt(store, plan, "hung", row, result="paused", iteration=5)
    else:
        rows = [row, make_row("bad", status="PAUSED", last_result={"training_iteration": 3})]
        leave_attempt(store, plan, layout.WHOLE_EXPERIMENT, *rows, result="paused", status="",
                      final_trial_id="*")  # fmt: skip
    store.put("train_hung/result.json", b"{}")  # by a restore
    clock.now = SEVEN + timedelta(minutes=1)
    commit_restore(store, "r1")
    clock.now += timedelta(seconds=1)
    options = PrepareOptions(choices=prepare_night(store).options.choices)
    assert options.stale_after == DEFAULT_STALE_AFTER
    prepared = prepare_restore(store, "r2", options)
    assert {trial.trial_id for trial in prepared.plan.to_run} == {"bad", "hung"}
    assert prepared.plan.pause_at == ""


def test_a_trial_that_failed_before_the_end_has_failed(store, clock):
    plan = start(store)
    leave_attempt(store, plan, "bad", result="failed")
    clock.now = SEVEN
    summary = commit_restore(store, "r1")
    assert [change.trial_id for change in summary.failed] == ["bad"]
    assert [change.trial_id for change in summary.paused] == ["hung"]


def test_a_runner_that_died_before_the_end_has_failed(store, clock):
    plan = start(store)
    request = claim_attempt(store, plan, "bad", SETTINGS)
    beat(store, request)
    assert "exited without recording" in str(record_death(store, plan, request, -9, ["gone"]))
    clock.now = SEVEN
    summary = commit_restore(store, "r1")
    assert [change.trial_id for change in summary.failed] == ["bad"]
    assert len(read_failures(store, "r1", "bad")) == 1


def test_a_runner_that_was_ended_after_the_end_has_not_failed(store, clock):
    """A job that hangs is stopped, a pod is deleted by its deadline."""
    plan = start(store)
    request = claim_attempt(store, plan, "bad", SETTINGS)
    beat(store, request)
    clock.now = SEVEN + timedelta(minutes=1)
    with pytest.raises(RestorePausedError, match=ENDED):
        raise record_death(store, plan, request, -9, ["killed"])
    assert read_failures(store, "r1", "bad", plan.pause_at) == ()
    assert len(read_failures(store, "r1", "bad")) == 1  # the same, in a restore without a window
    assert [change.trial_id for change in commit_restore(store, "r1").failed] == []


def test_a_paused_runner_that_left_no_outcome_has_not_failed():
    assert classify_exit(EXIT_PAUSED, "gone") is None


def test_a_run_of_coupled_trials_that_is_paused_did_not_break_off(store, clock):
    plan = start(store, strategy="whole_experiment")
    rows = [
        make_row("bad", last_result={"training_iteration": 6}),
        make_row("hung", status="PAUSED", last_result={"training_iteration": 4}),
    ]
    leave_attempt(store, plan, layout.WHOLE_EXPERIMENT, *rows, result="paused", status="",
                  final_trial_id="*")  # fmt: skip
    leave_outcome(store, AttemptOf("bad"), "finished")
    clock.now = SEVEN
    summary = commit_restore(store, "r1")
    assert (summary.broke_off, summary.failed) == ("", ())
    assert [change.trial_id for change in summary.paused] == ["hung"]
    assert "1 of 2 resumed trials finished, 1 paused until the next restore" in summary.headline()


class AttemptOf:
    restore_id, attempt = "r1", 1

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def test_a_follower_ends_with_the_window_and_names_its_own_trial(store, clock):
    plan = start(store, strategy="whole_experiment")

    def claim(attempt: int) -> None:
        claim_attempt(store, plan, layout.WHOLE_EXPERIMENT, SETTINGS, attempt=attempt)

    def sleep(_seconds: float) -> None:
        report = RunnerProgress(trial_id="hung", iteration=4, metrics={})
        tail = ProgressTail(first=0, reports=[report])
        store.put(layout.progress_key("r1", "hung", 1), tail.to_json())
        leave_outcome(store, AttemptOf(layout.WHOLE_EXPERIMENT), "paused")
        clock.now = SEVEN

    follower = Follower(store, "r1", "hung", claim, sleep=sleep)
    with pytest.raises(RestorePausedError, match=r"Trial hung of .* was paused at iteration 4"):
        list(follower.progress())


def test_a_restore_without_a_window_never_pauses(store, clock):
    prepared = prepare_night(store, "r1")
    plan = start_plan(prepared, holder="test")
    clock.now = SEVEN + timedelta(days=365)
    claim_attempt(store, plan, "bad", SETTINGS)
    assert read_plan(store, "r1").pause_at == ""
    assert commit_restore(store, "r1").paused == ()
