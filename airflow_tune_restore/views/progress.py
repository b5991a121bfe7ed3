"""One restore, live: where each of its trials is, from one walk over its records.

Beside the walk, only trials that live are read at each look. How an attempt ended is read once, by
the same `RestoreProgress`.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from airflow_tune_restore.exceptions import RecordUnreadableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import QUIET_SECONDS
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.listed_records import ListedRecords, RestoreRecords
from airflow_tune_restore.protocol.ray_job import job_of
from airflow_tune_restore.protocol.request import RunnerProgress, RunnerRequest
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.shown_rows import first_rows
from airflow_tune_restore.restore.summary import NO_OUTCOME
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each
from airflow_tune_restore.views.attempts import (
    AttemptEnd,
    Report,
    read_end,
    read_report,
    read_request,
    read_tail,
)
from airflow_tune_restore.views.holders import (
    LEFT,
    Held,
    dag_run_of,
    describe_left,
    find_holders,
    find_living,
)
from airflow_tune_restore.views.plan import MAX_TRIALS
from airflow_tune_restore.views.showable import showable

MOST_READS = 2000
"""Ends of attempts that one look reads. The next looks read the others."""

RUNNING, SILENT, WAITING, ENDED = "running", "silent", "waiting", "ended"
_STATES = (RUNNING, SILENT, "failed", "interrupted", "paused", WAITING, ENDED, "finished")
"""The states of trials, in the order in which a long table shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """The part of a plan that every look needs: a plan of thousands of trials is large."""

    metric: str | None
    is_whole: bool
    has_run: bool
    starts: dict[str, int]

    @classmethod
    def of(cls, plan: RestorePlan) -> "_Planned":
        return cls(
            metric=plan.metric,
            is_whole=plan.is_whole_experiment,
            has_run=layout.WHOLE_EXPERIMENT in plan.units,
            starts={trial.trial_id: trial.iteration for trial in plan.to_run},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A trial, or a run of many, as the walk has found it.

    Args:
        runner: The records of what runs it: its own, or those of the run of them all.
        attempt: The newest attempt of the runner; 0 without one.
        ended: The attempt whose end is read; 0 for none.
        reported: Its last report in the records of the run, if it has none of its own.
        end: How its attempt ended, if it did.
    """

    trial_id: str
    start: int | None
    records: ListedRecords
    runner: ListedRecords
    attempt: int
    ended: int
    reported: RunnerProgress | None = None
    end: AttemptEnd | None = None

    @property
    def is_followed(self) -> bool:
        """Whether it runs in a run of many, whose heartbeat is its sign of life."""
        return self.runner is not self.records

    @property
    def has_begun(self) -> bool:
        """Whether it has left a sign of life in its newest attempt."""
        if self.is_followed:
            return self.reported is not None or self.records.has_progress(self.attempt)
        return self.records.has_begun(self.attempt)

    @property
    def is_live(self) -> bool:
        """Whether it may be running now."""
        return self.has_begun and not self.ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The facts of one look that all rows need.

    Args:
        at: The time by the store's clock.
        is_over: Whether the restore is committed.
        driver: The number of the newest shared driver; 0 without one.
        run_end: How the run of many ended, if it did.
    """

    at: datetime
    is_over: bool
    metric: str | None
    driver: int
    run_end: AttemptEnd | None


@dataclass
class RestoreProgress:
    """Looks at one restore again and again. Threads take turns.

    Args:
        store: Rooted at the experiment directory.
    """

    store: ObjectStore
    restore_id: str
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _planned: _Planned | None = None
    _held: Held | None = None
    _ends: dict[tuple[str, int, bool], AttemptEnd] = field(default_factory=dict)
    _requests: dict[tuple[str, int], RunnerRequest | None] = field(default_factory=dict)

    def look(self, ask_holder: AskHolder | None = None) -> dict[str, Any]:
        """Return where each trial is now, and the run of many, if there is one. Writes nothing.

        `heard` is the age of the last heartbeat in seconds, by the store's clock. `pending` counts the
        trials in the state `ended`: the next looks read how they ended. `note` says why it is not at work
        any more, if it is neither at work nor committed. `ask_holder` returns whether a restore that
        looks alive is known to have ended.

        Raises:
            KeyNotFoundError: If the restore has no plan.
            RecordUnreadableError: If its plan is not valid.
            StorageError: If the store does not answer.
        """
        with self._turn:
            shown: dict[str, Any] = showable(self._look(ask_holder))
        return shown

    def _look(self, ask_holder: AskHolder | None) -> dict[str, Any]:
        planned = self._planned = self._planned or _Planned.of(
            read_plan(self.store, self.restore_id)
        )
        # before the walk: then nothing is written after it
        is_over = self._is_over()
        records, at = RestoreRecords(self.store, self.restore_id), self.store.now()
        run = self._find_run(records, planned)
        found = [*_find_trials(records, planned, self._tail(run)), *run]
        units = self._with_ends(found, planned.metric)
        seen = _Seen(
            at=at,
            is_over=is_over,
            metric=planned.metric,
            driver=records.of(layout.SHARED_DRIVER).newest(),
            run_end=units[-1].end if run else None,
        )
        reports = self._read_reports(units, planned.metric)
        rows = [self._describe(*each, seen) for each in zip(units, reports, strict=True)]
        trials, runs = rows[: len(rows) - len(run)], rows[len(rows) - len(run) :]
        counts = Counter(row["state"] for row in trials)
        first, hidden = first_rows(trials, lambda row: _STATES.index(row["state"]), MAX_TRIALS)
        return {
            "restore_id": self.restore_id,
            "dag_run": self._dag_run(),
            "is_over": is_over,
            "note": "" if is_over or counts[RUNNING] else self._why_left(ask_holder),
            "at": at.isoformat(),
            "counts": {state: counts[state] for state in _STATES if counts[state]},
            "pending": counts[ENDED],
            "trials": first,
            "hidden": len(hidden),
            "whole": runs[0] if runs else None,
        }

    def _is_over(self) -> bool:
        try:
            record = read_commit_record(self.store, self.restore_id)
        except RecordUnreadableError:
            return False  # the history says so
        return record is not None and record.is_done

    def _dag_run(self) -> dict[str, Any] | None:
        if self._held is None:
            entries = self.store.list_dir(layout.LEASE)
            holders = find_holders(self.store, entries, {self.restore_id})
            self._held = holders.get(self.restore_id)
        return dag_run_of(self._held.lease if self._held is not None else None)

    def _why_left(self, ask_holder: AskHolder | None) -> str:
        """Return why a restore without a commit is not at work; "" if it may be."""
        living = find_living(self.store, self.store.list_dir(layout.LEASE), ask_holder)
        if living is None or living.lease.restore_id != self.restore_id:
            return LEFT
        return "" if living.is_alive else describe_left(living)

    def _find_run(self, records: RestoreRecords, planned: _Planned) -> list[_Unit]:
        """Return the run of many: the whole-experiment run, or the shared driver, or none."""
        for unit in layout.RUNS_OF_MANY:
            own = records.of(unit)
            if own.found or (unit == layout.WHOLE_EXPERIMENT and planned.has_run):
                return [_alone(unit, own, None)]
        return []

    def _tail(self, run: list[_Unit]) -> dict[str, RunnerProgress]:
        """Return the last reports of the trials that have no task of their own, by trial."""
        if not run or run[0].trial_id != layout.WHOLE_EXPERIMENT or run[0].ended:
            return {}
        tail = read_tail(run[0].records, run[0].attempt)
        return {report.trial_id: report for report in tail.reports} if tail is not None else {}

    def _with_ends(self, units: list[_Unit], metric: str | None) -> list[_Unit]:
        """Return the units with their ends, as far as this look reads them."""
        unread = [unit for unit in units if unit.ended and _key(unit) not in self._ends]
        unread = unread[:MOST_READS]
        ends = for_each(lambda unit: read_end(unit.records, unit.ended, metric), unread)
        self._ends |= {_key(unit): end for unit, end in zip(unread, ends, strict=True)}
        return [self._with_end(unit) for unit in units]

    def _with_end(self, unit: _Unit) -> _Unit:
        end = self._ends.get(_key(unit)) if unit.ended else None
        if end is None:
            return unit
        # stopped in an earlier run, it goes on in this one; or it was never started
        goes_on = unit.ended < unit.attempt and not end.ends_trial
        return replace(unit, ended=0) if goes_on or end.was_not_begun else replace(unit, end=end)

    def _read_reports(self, units: list[_Unit], metric: str | None) -> list[Report | None]:
        """Return the last reports of the trials that live, and read their requests once."""
        runners = {_runner(unit): unit.runner for unit in units if unit.is_live}
        asked = [key for key in runners if key not in self._requests]
        requests = for_each(lambda key: read_request(runners[key], key[1]), asked)
        self._requests |= zip(asked, requests, strict=True)
        return for_each(lambda unit: _read_report(unit, metric) if unit.is_live else None, units)

    def _describe(self, unit: _Unit, report: Report | None, seen: _Seen) -> dict[str, Any]:
        """Return one row: a trial, or the run of many."""
        row: dict[str, Any] = {
            "trial_id": unit.trial_id,
            "state": ENDED if unit.ended else WAITING,
            "attempt": unit.attempt,
            "attempts": len(unit.runner.numbers()),
            "iteration": unit.start,
            "metric": seen.metric,
            "value": None,
            "heard": None,
            "error": "",
            "cause": "",
            "ray_job": None,
        }
        if unit.end is not None:
            return row | unit.end.describe()
        if not unit.is_live:
            return row
        if report is not None:
            row |= report._asdict()
        return row | self._describe_life(unit, seen)

    def _describe_life(self, unit: _Unit, seen: _Seen) -> dict[str, Any]:
        """Return the part of a row that says whether a trial without an end lives."""
        if unit.is_followed and seen.run_end is not None:  # it goes on in the next run
            state = "paused" if seen.run_end.state == "paused" else "interrupted"
            return {"state": state, "error": seen.run_end.error}
        if seen.is_over and unit.trial_id == layout.SHARED_DRIVER:
            return {"state": ENDED}  # it records no outcome: each of its trials does
        if seen.is_over:  # the commit has ended its runner
            return {"state": "interrupted", "error": NO_OUTCOME}
        heard_at = unit.runner.heard_at(unit.attempt)
        heard = max(0.0, (seen.at - heard_at).total_seconds()) if heard_at is not None else None
        is_silent = heard is not None and heard > QUIET_SECONDS
        return {
            "state": SILENT if is_silent else RUNNING,
            "heard": heard,
            "ray_job": self._job(unit, seen.driver),
        }

    def _job(self, unit: _Unit, driver: int) -> str | None:
        request = self._requests.get(_runner(unit))
        if request is None:
            return None
        if request.is_shared and driver:
            return job_of(replace(request, trial_id=layout.SHARED_DRIVER, attempt=driver))
        return job_of(request)


def view_progress(store: ObjectStore, restore_id: str) -> dict[str, Any]:
    """Return one look at a restore; as `RestoreProgress.look`, which keeps what it has read."""
    return RestoreProgress(store, restore_id).look()


def _find_trials(
    records: RestoreRecords, planned: _Planned, tail: dict[str, RunnerProgress]
) -> Iterable[_Unit]:
    """Yield the trials to run, and the samples that the run has drawn."""
    if not planned.is_whole:
        for trial_id, start in planned.starts.items():
            yield _alone(trial_id, records.of(trial_id), start)
        return
    run, found = records.of(layout.WHOLE_EXPERIMENT), [*records.units, *tail]
    known = planned.starts | layout.RUNS_OF_MANY
    drawn = {unit: 0 for unit in found if unit not in known}
    for trial_id, start in (planned.starts | drawn).items():
        own = records.of(trial_id)
        outcomes = (number for number in own.numbers() if own.has_outcome(number))
        yield _Unit(
            trial_id=trial_id,
            start=start,
            records=own,
            runner=run,
            attempt=run.newest(),
            ended=max(outcomes, default=0),
            reported=tail.get(trial_id),
        )


def _alone(trial_id: str, records: ListedRecords, start: int | None) -> _Unit:
    """Return a unit that has a runner of its own."""
    newest = records.newest()
    has_ended = records.has_outcome(newest) or records.has_exit(newest)
    return _Unit(
        trial_id=trial_id,
        start=start,
        records=records,
        runner=records,
        attempt=newest,
        ended=newest if has_ended else 0,
    )


def _runner(unit: _Unit) -> tuple[str, int]:
    """Return the attempt whose request tells how a trial is run."""
    return unit.runner.unit, unit.attempt


def _key(unit: _Unit) -> tuple[str, int, bool]:
    """Return what an end is known by: a runner that was taken for dead may leave an outcome after all."""
    return unit.trial_id, unit.ended, unit.records.has_outcome(unit.ended)


def _read_report(unit: _Unit, metric: str | None) -> Report | None:
    if unit.trial_id in layout.RUNS_OF_MANY:
        return None
    own = read_report(unit.records, unit.attempt, metric, has_own_runner=not unit.is_followed)
    if own is not None or unit.reported is None:
        return own
    return Report.of(unit.reported, metric)
