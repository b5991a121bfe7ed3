"""Store -> a report on every experiment below a prefix. Nothing here walks checkpoints."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

from airflow_tune_restore.exceptions import StateUnreadableError, TuneRestoreError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.health import (
    DEFAULT_STALE_AFTER,
    Evidence,
    ExperimentReport,
    Health,
    judge,
)
from airflow_tune_restore.experiments.read import (
    CONCURRENCY,
    NO_EXPERIMENT,
    NotStartedError,
    read_experiment,
)
from airflow_tune_restore.experiments.state import is_safe_name
from airflow_tune_restore.storage.base import Entry, ObjectStore

MAX_DEPTH = 4
"""How deep below a prefix experiments are looked for (`team/user/project/experiment`)."""


def scan(
    store: ObjectStore,
    *,
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    max_depth: int = MAX_DEPTH,
) -> list[ExperimentReport]:
    """Report on every experiment at or below the store's root, sorted by URI.

    An experiment is a directory that holds `tuner.pkl` or a state file. One that cannot be read is
    reported as such and does not keep the others from being found.
    """
    now = store.now()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        found = [(store, store.list_dir())]
        reports: list[ExperimentReport] = []
        for depth in range(max_depth + 1):
            experiments = [(at, entries) for at, entries in found if _is_experiment(entries)]
            reports += pool.map(
                lambda item: _report(item[0], item[1], now, stale_after), experiments
            )
            if depth == max_depth:
                break
            below = [
                at.at(entry.name)
                for at, entries in found
                if not _is_experiment(entries)
                for entry in entries
                if entry.is_dir and _may_hold_experiments(entry.name)
            ]
            found = []
            for at, listed in zip(below, pool.map(_list, below), strict=True):
                if isinstance(listed, list):
                    found.append((at, listed))
                else:
                    reports.append(listed)
    return sorted(reports, key=lambda report: report.experiment)


def examine(
    store: ObjectStore, *, stale_after: timedelta = DEFAULT_STALE_AFTER
) -> ExperimentReport:
    """Report on the experiment at the store's root.

    Raises:
        StateUnreadableError: If there is no experiment at all.
    """
    entries = store.list_dir()
    if not _is_experiment(entries):
        raise StateUnreadableError(store.uri, NO_EXPERIMENT)
    return _report(store, entries, store.now(), stale_after)


def _report(
    store: ObjectStore, entries: list[Entry], now: datetime, stale_after: timedelta
) -> ExperimentReport:
    last_write = _newest(entries)
    name = store.uri.rstrip("/").rpartition("/")[2]
    try:
        return _report_readable(store, entries, now, stale_after)
    except NotStartedError as error:
        health = Health.NOT_STARTED
        if last_write is not None and now - last_write < stale_after:
            health = Health.RUNNING
        return _without_state(store.uri, name, health, str(error), last_write)
    except TuneRestoreError as error:
        return _without_state(store.uri, name, Health.UNREADABLE, str(error), last_write)


def _report_readable(
    store: ObjectStore, entries: list[Entry], now: datetime, stale_after: timedelta
) -> ExperimentReport:
    last_write = _newest(entries)
    experiment = read_experiment(store, entries)
    committed_at = _committed_at(entries, experiment)
    evidence = Evidence(last_write=last_write, committed_at=committed_at, now=now)
    health, reason = judge(experiment, evidence, stale_after=stale_after)
    if health is Health.INTERRUPTED and stale_after:
        # the root is silent; a trial directory may still be written to
        times = [last_write, _newest_in_trials(store, experiment)]
        last_write = max(filter(None, times), default=None)
        evidence = replace(evidence, last_write=last_write)
        health, reason = judge(experiment, evidence, stale_after=stale_after)
    if experiment.warnings:
        reason = "; ".join([reason, *experiment.warnings])
    return ExperimentReport(
        experiment=store.uri,
        name=experiment.name,
        health=health,
        reason=reason,
        trials=experiment.count_by_status,
        state_file=experiment.state_file.name,
        last_write=last_write,
        samples_left=experiment.samples_left,
        warnings=experiment.warnings,
    )


def _without_state(
    uri: str, name: str, health: Health, reason: str, last_write: datetime | None
) -> ExperimentReport:
    return ExperimentReport(
        experiment=uri,
        name=name,
        health=health,
        reason=reason,
        trials={},
        state_file=None,
        last_write=last_write,
        samples_left=None,
    )


def _newest_in_trials(store: ObjectStore, experiment: Experiment) -> datetime | None:
    """Return the newest write in the directories of unfinished trials, one level deep."""
    directories = [t.trial_dir for t in experiment.trials if not t.is_finished and t.trial_dir]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        newest = pool.map(lambda name: _newest(store.list_dir(name)), directories)
        return max(filter(None, newest), default=None)


def _committed_at(entries: list[Entry], experiment: Experiment) -> datetime | None:
    """Return when the newest state was written, if a commit of ours did."""
    name = experiment.state_file.name
    if not layout.is_committed_state(name):
        return None
    return next((entry.modified_at for entry in entries if entry.name == name), None)


def _newest(entries: list[Entry]) -> datetime | None:
    """Return the newest write to a file; states that we committed are no sign of a living driver."""
    return max(
        (
            entry.modified_at
            for entry in entries
            if entry.modified_at is not None
            and not entry.is_dir
            and not layout.is_committed(entry.name)
        ),
        default=None,
    )


def _list(store: ObjectStore) -> list[Entry] | ExperimentReport:
    """List a directory; one that cannot be listed keeps nobody from looking into the others."""
    try:
        return store.list_dir()
    except TuneRestoreError as error:
        name = store.uri.rpartition("/")[2]
        return _without_state(store.uri, name, Health.UNREADABLE, str(error), None)


def _is_experiment(entries: list[Entry]) -> bool:
    return any(
        not entry.is_dir and (entry.name == layout.TUNER_FILE or layout.is_state_file(entry.name))
        for entry in entries
    )


def _may_hold_experiments(name: str) -> bool:
    """Leave out our own directory, hidden ones, and checkpoints of trials that lost their experiment.

    And what nobody could write as an address: Ray makes no such name.
    """
    return is_safe_name(name) and not name.startswith((".", layout.CHECKPOINT_PREFIX))
