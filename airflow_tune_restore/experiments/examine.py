"""Store -> a report on one experiment, for one listing of the root and one get of the newest state.

The searcher's state and `tuner.pkl` are read, too, where they decide (`read_outline`, `read_doubt`).
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.evidence import (
    MAX_PATIENCE,
    DriverStatus,
    Evidence,
    EvidenceKind,
    describe_evidence,
)
from airflow_tune_restore.experiments.experiment import describe_lost_searcher
from airflow_tune_restore.experiments.health import (
    DEFAULT_STALE_AFTER,
    RESTORABLE,
    ExperimentReport,
    Health,
    Verdict,
    judge,
    judge_running,
    judge_unstarted,
)
from airflow_tune_restore.experiments.index import Index
from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import (
    NotStartedError,
    ReadState,
    not_an_experiment,
    read_outline,
)
from airflow_tune_restore.experiments.read_checkpoints import checkpoint_names
from airflow_tune_restore.experiments.root import Root, list_root
from airflow_tune_restore.experiments.spot_check import SpotCheck
from airflow_tune_restore.experiments.state_summary import (
    StateSummary,
    fingerprint,
    summarize,
    unreadable_summary,
)
from airflow_tune_restore.experiments.tuner_file import (
    read_doubt,
    read_lost_searcher,
    read_samples_left,
)
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.lease_objects import (
    AskHolder,
    read_lease_status,
    times_held,
    was_restored,
)
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import IN_FLIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamineOptions:
    """How each experiment is examined.

    Args:
        now: When the scan began, by the store's clock.
        stale_after: Silence after which an unfinished experiment counts as dead.
        checks_restore: Whether a running restore counts; a caller that starts one handles the lease.
        lists_again: Whether the root is listed once more before an experiment is called dead.
        ask_driver: Returns for an experiment (URI) whether a driver runs for it.
        ask_holder: Returns whether a restore that looks alive is known to have ended.
        spot_check: Reads some experiments of the index again.
        explains: Whether the states of older runs are read, too.
        read_state: Reads the state of an experiment, if the caller needs more of it.
        pool: Threads for requests about several trials of one experiment.
    """

    now: datetime
    stale_after: timedelta
    checks_restore: bool = True
    lists_again: bool = True
    ask_driver: Callable[[str], DriverStatus] | None = None
    ask_holder: AskHolder | None = None
    index: Index | None = None
    spot_check: SpotCheck | None = None
    explains: bool = False
    read_state: ReadState | None = None
    pool: ThreadPoolExecutor


def examine(
    store: ObjectStore,
    root: Root | None = None,
    *,
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    ask_driver: Callable[[str], DriverStatus] | None = None,
    read_state: ReadState | None = None,
) -> ExperimentReport:
    """Report on the experiment at the store's root, without an index.

    A running restore does not count: the caller, who starts one, handles the lease. `root` is its
    listing, and `read_state` reads its state, if the caller needs them, too. `ask_driver` returns for an
    experiment (URI) whether a driver runs for it; it is asked if the experiment looks dead.

    Raises:
        StateUnreadableError: If this is not an experiment.
    """
    entries, now = root or list_root(store)
    if not is_experiment(entries):
        raise not_an_experiment(store)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        options = ExamineOptions(
            now=now,
            stale_after=stale_after,
            checks_restore=False,
            ask_driver=ask_driver,
            read_state=read_state,
            pool=pool,
        )
        return examine_listed(store, entries, "", options)[0]


def examine_listed(
    store: ObjectStore, entries: list[Entry], path: str, options: ExamineOptions
) -> tuple[ExperimentReport, bool]:
    """Return a report on a listed directory, and whether this is an experiment, possibly a damaged one.

    The index keeps it under its path below the prefix.
    """
    is_one = any(layout.state_session(entry.name) for entry in entries if not entry.is_dir)
    evidence = Evidence(
        root_written=_newest(entries),
        marker_written=_written(entries, layout.STORAGE_MARKER),
        tuner_written=_written(entries, layout.TUNER_FILE),
        checked=frozenset() if was_restored(entries) else frozenset({EvidenceKind.RESTORE}),
        now=options.now,
    )
    examination = _Examination(store, entries, path, options)
    try:
        return examination.report(evidence), True
    except NotStartedError as error:
        # only Ray's own names show that this is an experiment; other files may come from anywhere
        return examination.report_unstarted(str(error), evidence), is_one
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
        return _report_without_state(store, _unreadable(store, error), evidence, options), is_one


def report_unreadable(
    store: ObjectStore, error: Exception, options: ExamineOptions
) -> ExperimentReport:
    """Report on a directory that could not be listed or examined."""
    evidence = Evidence(root_written=None, now=options.now)
    return _report_without_state(store, _unreadable(store, error), evidence, options)


def is_experiment(entries: list[Entry]) -> bool:
    """Whether a listing is that of an experiment: it has a `tuner.pkl` or a state file."""
    return any(
        not entry.is_dir and (entry.name == layout.TUNER_FILE or layout.is_state_file(entry.name))
        for entry in entries
    )


class _Examination(NamedTuple):
    """One experiment and how it is examined; the arguments are those of `examine_listed`."""

    store: ObjectStore
    entries: list[Entry]
    path: str
    options: ExamineOptions

    def report(self, evidence: Evidence) -> ExperimentReport:
        """Report on an experiment with a readable state.

        Raises:
            StateUnreadableError: If no state can be used.
            NotStartedError: If no state holds a trial.
        """
        store, entries, options = self.store, self.entries, self.options
        mark = fingerprint(entries)
        summary, is_new = self._read_summary(mark)
        left = summary.samples_left
        if summary.unfinished:  # then the samples do not decide between dead and alive
            summary = msgspec.structs.replace(summary, samples_left=None)
        else:
            evidence = evidence.with_check(EvidenceKind.SAMPLES)
        written = _written(entries, summary.state_file)
        evidence = replace(
            evidence,
            state_written=written,
            committed_at=written if layout.is_committed_state(summary.state_file) else None,
        )
        evidence = self._read_times_of_marker(evidence)
        health = judge(summary, evidence, stale_after=options.stale_after).health
        if health is Health.INTERRUPTED and summary.unfinished:
            summary = msgspec.structs.replace(summary, samples_left=left)
            if left is None:  # it will be restored, and the report shows what is left
                summary = self._with_samples(summary)
                is_new = is_new or summary.samples_left is not None
            evidence = evidence.with_check(EvidenceKind.SAMPLES)
        if health in RESTORABLE:
            if is_new and (doubt := read_doubt(store, entries, summary.trainables)):
                summary = msgspec.structs.replace(summary, warnings=(*summary.warnings, doubt))
            evidence = self._gather_evidence(summary, evidence, health)
            if (listed_now := self._relist_after_commit()) != entries:
                # only once: a second change is not the commit of the same restore
                once = replace(options, lists_again=False)
                return examine_listed(store, listed_now, self.path, once)[0]
        health, reason, counted = judge(summary, evidence, stale_after=options.stale_after)
        if is_new and options.index and health is not Health.RUNNING:
            options.index.remember(self.path, mark, summary)
        if options.explains:
            evidence = self._read_older_runs(summary, evidence)
        restore = evidence.restore
        return ExperimentReport(
            experiment=store.uri,
            health=health,
            reason="; ".join([reason, *_notes(store, summary)]),
            trials=summary.trials,
            state_file=summary.state_file,
            last_write=evidence.last_write,
            samples_left=summary.samples_left,
            was_restored=was_restored(entries),
            abandoned=restore.lease.epoch if restore is not None and not restore.is_alive else None,
            warnings=summary.warnings,
            evidence=describe_evidence(summary, evidence, counted, stale_after=options.stale_after),
        )

    def report_unstarted(self, reason: str, evidence: Evidence) -> ExperimentReport:
        """Report on an experiment that has no state with a trial; its store may fail, too."""
        try:
            evidence = self._read_lease_and_driver(self._read_times_of_marker(evidence))
            verdict = judge_unstarted(reason, evidence, stale_after=self.options.stale_after)
        except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
            verdict = _unreadable(self.store, error)
        return _report_without_state(self.store, verdict, evidence, self.options)

    def _read_summary(self, mark: str | None) -> tuple[StateSummary, bool]:
        """Return the summary of the newest state, and whether it is missing in the index.

        Raises:
            StateUnreadableError: If no state can be used. The index keeps that, too.
        """
        index, spot_check = self.options.index, self.options.spot_check
        known = index.look_up(self.path, mark) if index else None
        if known is not None and spot_check is not None:
            spot_check.check(self.store, self.entries, self.path)
        if known is not None and known.unreadable:
            raise StateUnreadableError(self.store.uri, known.unreadable)
        if known is not None:
            return known, False
        try:
            outline = read_outline(self.store, self.entries, self.options.read_state)
            return summarize(outline), True
        except StateUnreadableError as error:
            if index:
                index.remember(self.path, mark, unreadable_summary(error.reason))
            raise

    def _with_samples(self, summary: StateSummary) -> StateSummary:
        """Add how many samples are left, and whether they can still be drawn."""
        left = read_samples_left(self.store, self.entries, summary.total)
        lost = read_lost_searcher(self.store, self.entries, summary.trainables) if left else ""
        return msgspec.structs.replace(summary, samples_left=left, searcher_lost=lost)

    def _gather_evidence(
        self, summary: StateSummary, evidence: Evidence, health: Health
    ) -> Evidence:
        """Check whether a restore or driver runs, or a trial is written to, before it counts as dead."""
        evidence = self._read_lease_and_driver(evidence)
        is_clear = judge_running(evidence) or health is not Health.INTERRUPTED
        if is_clear or not self.options.stale_after:
            return evidence
        find = functools.partial(_newest_in_trial, self.store)
        newest = self.options.pool.map(find, summary.unfinished_dirs)
        written = max(filter(None, newest), default=None)
        evidence = replace(evidence, trials_written=written).with_check(EvidenceKind.TRIAL_DIRS)
        return self._read_times_held(evidence, written)

    def _read_times_of_marker(self, evidence: Evidence) -> Evidence:
        """Read when restores held the lease, if Ray's marker is the newest file in the root."""
        marker, other = evidence.marker_written, evidence.root_written
        if marker is None or (other is not None and marker <= other):
            return evidence
        return self._read_times_held(evidence, marker)

    def _read_times_held(self, evidence: Evidence, written: datetime | None) -> Evidence:
        """Read when restores held the lease, if a write at that time matters and may be theirs."""
        if written is None or self.options.now - written >= MAX_PATIENCE:
            return evidence
        if evidence.held or evidence.is_by_restore(written) or not was_restored(self.entries):
            return evidence
        return replace(evidence, held=times_held(self.store.list_dir(layout.LEASE)))

    def _read_lease_and_driver(self, evidence: Evidence) -> Evidence:
        options = self.options
        if options.checks_restore:
            restore = read_lease_status(self.store, self.entries, options.now)
            if restore is not None and restore.is_alive and options.ask_holder is not None:
                restore = replace(restore, holder=options.ask_holder(restore))
            evidence = replace(evidence, restore=restore).with_check(EvidenceKind.RESTORE)
        if options.ask_driver is not None:
            evidence = replace(evidence, driver=options.ask_driver(self.store.uri))
        return evidence

    def _relist_after_commit(self) -> list[Entry]:
        """List the root once more if a restore may have committed since it was listed.

        Its lease is released by then, so that neither listing alone shows that a restore was running.
        """
        options = self.options
        may_have = was_restored(self.entries) and options.checks_restore and options.lists_again
        return self.store.list_dir() if may_have else self.entries

    def _read_older_runs(self, summary: StateSummary, evidence: Evidence) -> Evidence:
        """Read the states of older runs, if there are any; a summary has no trials to compare with."""
        if older := older_states(self.entries, summary.state_file):
            newest = read_outline(self.store, self.entries).state
            evidence = replace(evidence, older_runs=describe_older_runs(self.store, older, newest))
        return evidence.with_check(EvidenceKind.OLDER)


def _report_without_state(
    store: ObjectStore, verdict: Verdict, evidence: Evidence, options: ExamineOptions
) -> ExperimentReport:
    return ExperimentReport(
        experiment=store.uri,
        health=verdict.health,
        reason=verdict.reason,
        trials={},
        state_file=None,
        last_write=evidence.last_write,
        samples_left=None,
        evidence=describe_evidence(
            None, evidence, verdict.counted, stale_after=options.stale_after
        ),
    )


def _unreadable(store: ObjectStore, error: Exception) -> Verdict:
    """Return the verdict with the reason; unexpected errors are logged, too."""
    if isinstance(error, StateUnreadableError):
        return Verdict(Health.UNREADABLE, error.reason, {})
    known = error if isinstance(error, TuneRestoreError) else report_unexpected(store.uri, error)
    return Verdict(Health.UNREADABLE, str(known), {})


def _notes(store: ObjectStore, summary: StateSummary) -> list[str]:
    """Return notes for the user beside the verdict."""
    if not (summary.samples_left and summary.searcher_lost):
        return list(summary.warnings)
    lost = describe_lost_searcher(summary.samples_left, summary.searcher_lost)
    return [*summary.warnings, lost]


def _newest_in_trial(store: ObjectStore, trial_dir: str) -> datetime | None:
    """Return the newest write to a trial's directory, or to its newest checkpoint.

    Workers upload checkpoints by themselves; result rows come with the driver's snapshots, which may be
    rare. A directory that is a link to itself has no writes.
    """
    try:
        entries = store.list_dir(trial_dir)
    except CannotBeFollowedError:
        return None
    times = [_newest(entries)]
    if checkpoints := checkpoint_names(entries):
        times.append(_newest(store.list_dir(f"{trial_dir}/{max(checkpoints)}")))
    return max(filter(None, times), default=None)


def _written(entries: list[Entry], name: str) -> datetime | None:
    """Return when an object was written; None if it does not exist, or the store reports no times."""
    return next((entry.modified_at for entry in entries if entry.name == name), None)


def _newest(entries: list[Entry]) -> datetime | None:
    """Return the newest write to a file.

    A state that a restore committed shows no living driver. Ray's marker counts by itself.
    """
    files = (
        entry
        for entry in entries
        if not (
            entry.is_dir or layout.is_committed(entry.name) or entry.name == layout.STORAGE_MARKER
        )
    )
    return max((e.modified_at for e in files if e.modified_at is not None), default=None)
