"""One poll of storage for many triggers: a trial with invalid records does not disturb the others."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.triggers import trial_poller
from airflow_tune_restore.triggers.trial_poller import TrialPoller, TrialWatch
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_poller, "ROUND_SECONDS", 0.02)
    opened = open_store(str(tmp_path))
    lease.acquire(opened, restore_id="r1", holder="test", ttl_seconds=60)
    report = RunnerProgress(trial_id="good", iteration=3, metrics={"score": 0.5})
    tail = ProgressTail(first=0, reports=[report])
    opened.put(layout.progress_key("r1", "good", 1), tail.to_json())
    return opened


def watch_until(store, condition) -> tuple[TrialWatch, TrialWatch]:
    """Watch two trials, the odd one first, until the condition holds of them."""
    odd, good = (
        TrialWatch(trial_id=name, attempt=1, ends_with_outcome=True) for name in ("odd", "good")
    )

    async def main():
        async with AsyncExitStack() as stack:
            for trial in (odd, good):
                watch = TrialPoller.watch(trial, store.uri.removeprefix("file://"), "r1")
                await stack.enter_async_context(watch)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition(odd, good):
                    await asyncio.sleep(0.01)

    asyncio.run(main())
    return odd, good


@pytest.mark.parametrize(
    "body",
    [b'{"first": 0, "reports": [{"trial_id": "odd", "iteration": 1, "metrics": [1]}]}',
     b'{"first": 0, "reports": [7]}', b'{"first": "x", "reports": {}}', b"[" * 9000, b"\xff"],
)  # fmt: skip
def test_invalid_progress_does_not_keep_other_trials_from_being_read(store, body):
    store.put(layout.progress_key("r1", "odd", 1), body)
    odd, good = watch_until(store, lambda odd, good: odd.is_behind and good.reports)
    assert [report.iteration for report in good.reports] == [3]
    assert (odd.broken, good.broken, good.is_behind) == (None, None, False)


def test_an_unexpected_error_ends_the_wait_for_its_own_trial_alone(store, monkeypatch):
    progress = AttemptRecords.progress

    def read(records, attempt):
        if records.unit == "odd":
            raise ZeroDivisionError
        return progress(records, attempt)

    monkeypatch.setattr(AttemptRecords, "progress", read)
    # reading is in a thread; `changed` is set after it
    odd, good = watch_until(store, lambda odd, good: odd.changed.is_set() and good.reports)
    assert isinstance(odd.broken, ZeroDivisionError)
    assert good.broken is None


def test_a_poll_that_breaks_off_ends_the_wait_of_all_triggers(store, monkeypatch):
    def renew(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(lease, "RENEW_SECONDS", -1.0)
    monkeypatch.setattr(lease, "renew", renew)
    odd, good = watch_until(store, lambda odd, good: odd.changed.is_set() and good.changed.is_set())
    assert [type(trial.broken) for trial in (odd, good)] == [ZeroDivisionError] * 2


def test_an_invalid_outcome_ends_the_wait(store):
    store.put(layout.outcome_key("r1", "odd", 1), json.dumps({"result": "glorious"}).encode())
    odd, good = watch_until(store, lambda odd, good: odd.has_ended and good.reports)
    assert odd.broken is None
    assert not good.has_ended
