"""Store -> a report on every experiment below a prefix. Nothing here walks checkpoints.

Each experiment costs one listing of its root and one get of its newest state; one more get, of the
searcher's state, where all trials have ended and do not show that all samples were drawn; and one, of
`tuner.pkl`, of what would be restored and has one that was written after its driver's states. A scan that
remembers the last one (`index`) gets only what has changed since, and some of what has not, by chance:
if the index is wrong there (`spot_check`), all is read anew. Roots are listed every time: that is how a
change is noticed at all.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import NamedTuple

import msgspec

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.evidence_table import describe_evidence
from airflow_tune_restore.experiments.experiment import describe_lost_searcher
from airflow_tune_restore.experiments.health import (
    DEFAULT_STALE_AFTER,
    RESTORABLE,
    DriverStatus,
    Evidence,
    EvidenceKind,
    ExperimentReport,
    Health,
    Verdict,
    at_work,
    judge,
    judge_unstarted,
)
from airflow_tune_restore.experiments.index import Index, read_index
from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import (
    CONCURRENCY,
    NotStartedError,
    no_experiment,
    read_outline,
)
from airflow_tune_restore.experiments.samples import read_lost_searcher, read_samples_left
from airflow_tune_restore.experiments.scan_filter import ScanFilter
from airflow_tune_restore.experiments.spot_check import Chance, SpotCheck, fresh_chance
from airflow_tune_restore.experiments.state_summary import (
    StateSummary,
    build_facts,
    fingerprint,
    unreadable_facts,
)
from airflow_tune_restore.experiments.tuner_file import read_doubt
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.checkpoints import checkpoint_index
from airflow_tune_restore.protocol.lease_objects import read_lease_status, was_restored
from airflow_tune_restore.protocol.names import is_safe_name, is_segment
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.location import Location

THREADS = 64
"""Requests in flight: more gained nothing on the test server, and fewer wait on a distant one."""

_EVERYTHING = ScanFilter()


class _Below(NamedTuple):
    """A directory to visit: where a link leads, if it is one, and its path below the prefix."""

    place: str
    path: str


_Visited = tuple[ExperimentReport | None, list[_Below]]
"""What one directory brought: a report, and the directories to visit below it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExamineOptions:
    """How a scan looks at each experiment.

    Args:
        now: When it began, by the store's clock.
        stale_after: Silence after which an unfinished experiment counts as dead.
        asks_for_restore: Whether a restore at work counts; who is about to start one asks that himself.
        looks_again: Whether the root is listed once more before an experiment is called dead.
        ask_driver: Says of an experiment (URI) whether a driver runs for it.
        index: What is remembered of the prefix, if anything is.
        spot_check: Reads some of that again.
        explains: Whether the states of older runs are read, too.
        pool: Threads for what several trials of one experiment are asked.
    """

    now: datetime
    stale_after: timedelta
    asks_for_restore: bool = True
    looks_again: bool = True
    ask_driver: Callable[[str], DriverStatus] | None = None
    index: Index | None = None
    spot_check: SpotCheck | None = None
    explains: bool = False
    pool: ThreadPoolExecutor


def scan(
    store: ObjectStore,
    *,
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    selection: ScanFilter = _EVERYTHING,
    use_index: bool = True,
    ask_driver: Callable[[str], DriverStatus] | None = None,
    explains: bool = False,
    chance: Chance | None = None,
) -> list[ExperimentReport]:
    """Report on every experiment at or below the store's root, sorted by URI.

    An experiment is a directory that holds `tuner.pkl` or a state file. One that cannot be read is
    reported as such and does not keep the others from being found, not even those below it, if no
    state there is named as Ray names them. Inside an experiment no other is looked for, and a link to a
    directory of the same prefix is not followed: each is found once, by its own name. Of several links to
    one place elsewhere one is followed, that with the smallest path.

    Args:
        store: Rooted at the prefix.
        stale_after: Silence after which an unfinished experiment counts as dead.
        selection: Which directories are looked into.
        use_index: Remember in the prefix what was read, and get only what has changed since.
        ask_driver: Says of an experiment (URI) whether a driver runs for it; asked of what looks dead.
        explains: Read the states of older runs, too. No verdict rests on them.
        chance: Chooses what the index is checked by; None for what nobody can foresee.
    """
    root = store.list_dir()
    at_root = _is_experiment(root)  # then its `.tune_restore` is no prefix's
    index = read_index(store) if use_index and not at_root else None
    spot_check = SpotCheck(index, chance or fresh_chance()) if index is not None else None
    with ThreadPoolExecutor(THREADS) as threads, ThreadPoolExecutor(CONCURRENCY) as pool:
        look = _ExamineOptions(
            now=store.now(),
            stale_after=stale_after,
            ask_driver=ask_driver,
            index=index,
            spot_check=spot_check,
            explains=explains,
            pool=pool,
        )
        reports = list(_walk(threads, store, root, selection, look))
        if spot_check is not None and not spot_check.agrees(store, threads):
            index = Index(replaces_forged=True)
            look = replace(look, index=index, spot_check=None)
            reports = list(_walk(threads, store, root, selection, look))
    if index is not None:
        index.write(store, was_complete=selection.takes_all)
    return sorted(reports, key=lambda report: report.experiment)


def examine(
    store: ObjectStore,
    *,
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    ask_driver: Callable[[str], DriverStatus] | None = None,
) -> ExperimentReport:
    """Report on the experiment at the store's root. Reads it, whatever an index says.

    A restore at work on it does not count: whoever starts one deals with the lease himself.

    Args:
        store: Rooted at the experiment directory.
        stale_after: Silence after which it counts as dead.
        ask_driver: Says of an experiment (URI) whether a driver runs for it; asked if it looks dead.

    Raises:
        StateUnreadableError: If there is no experiment at all.
    """
    entries = store.list_dir()
    if not _is_experiment(entries):
        raise no_experiment(store)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        look = _ExamineOptions(
            now=store.now(),
            stale_after=stale_after,
            asks_for_restore=False,
            ask_driver=ask_driver,
            pool=pool,
        )
        report, _ = _report(store, entries, "", look)
        return report


def _walk(
    threads: ThreadPoolExecutor,
    store: ObjectStore,
    root: list[Entry],
    selection: ScanFilter,
    look: _ExamineOptions,
) -> Iterator[ExperimentReport]:
    """Yield reports as they come; a directory that is no experiment brings those below it.

    Links that lead elsewhere are followed when all else is visited, in the order of their names, and one
    to each place: links that lead to each other would never end, and which of two is followed must not
    depend on which thread comes first.
    """
    followed: set[str] = set()
    links: list[_Below] = []
    ended: SimpleQueue[Future[_Visited]] = SimpleQueue()
    first: Future[_Visited] = Future()
    first.add_done_callback(ended.put)
    first.set_result(_look_into(store, "", selection, look, entries=root))
    open_visits = 1
    while open_visits:
        report, below = ended.get().result()
        links += [item for item in below if item.place]
        paths = [item.path for item in below if not item.place]
        if open_visits == 1 and not paths:
            # a dict keeps the last of a key, so the smallest path comes last
            new = {at: path for at, path in sorted(links, reverse=True) if at not in followed}
            followed.update(new)
            links, paths = [], list(new.values())
        open_visits += len(paths) - 1
        for path in paths:
            visit = threads.submit(_look_into, store.at(path), path, selection, look)
            visit.add_done_callback(ended.put)
        if report is not None:
            yield report


def _look_into(
    store: ObjectStore,
    path: str,
    selection: ScanFilter,
    look: _ExamineOptions,
    *,
    entries: list[Entry] | None = None,
) -> _Visited:
    """Visit a directory; one that cannot be listed keeps nobody from looking into the others."""
    try:
        entries = store.list_dir() if entries is None else entries
        return _visit(store, entries, path, selection, look)
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
        nothing = Evidence(root_written=None, now=look.now)
        return _without_state(store, _unreadable(store, error), nothing, look), []


def _visit(
    store: ObjectStore,
    entries: list[Entry],
    path: str,
    selection: ScanFilter,
    look: _ExamineOptions,
) -> _Visited:
    """Return the report of an experiment, or the paths of the directories to visit below this one.

    Both, where a file only looks as if this were one.
    """
    report = None
    if _is_experiment(entries):
        if not selection.takes(path):
            return None, []
        report, is_one = _report(store, entries, path, look)
        if is_one:
            if not path and any(_may_hold_experiments(store, entry) for entry in entries):
                # who can write to a prefix can make it one, and hide all of its experiments
                log.warning(
                    "%s is an experiment itself, and no other is looked for below it. If others lie "
                    "there, move its tuner.pkl and its experiment_state-*.json away.",
                    printable(store.uri),
                )
            return report, []
    if path.count("/") + bool(path) >= selection.max_depth:
        return report, []
    below = [
        _Below(entry.place, f"{path}/{entry.name}".lstrip("/"))
        for entry in entries
        if _may_hold_experiments(store, entry)
    ]
    return report, [item for item in below if selection.enters(item.path)]


def _report(
    store: ObjectStore, entries: list[Entry], path: str, look: _ExamineOptions
) -> tuple[ExperimentReport, bool]:
    """Return a report, and whether this is an experiment, if perhaps a damaged one."""
    evidence = Evidence(
        root_written=_newest(entries),
        tuner_written=_written(entries, layout.TUNER_FILE),
        looked_at=frozenset() if was_restored(entries) else frozenset({EvidenceKind.RESTORE}),
        now=look.now,
    )
    try:
        return _report_readable(store, entries, path, evidence, look), True
    except NotStartedError as error:
        verdict, evidence = _judge_unstarted(store, entries, str(error), evidence, look)
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
        verdict = _unreadable(store, error)
    return _without_state(store, verdict, evidence, look), _holds_states_of_ray(entries)


def _judge_unstarted(
    store: ObjectStore, entries: list[Entry], reason: str, evidence: Evidence, look: _ExamineOptions
) -> tuple[Verdict, Evidence]:
    """Judge what has no state with a trial; it, too, may be of a store that fails."""
    try:
        evidence = _read_lease_and_driver(store, entries, evidence, look)
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
        return _unreadable(store, error), evidence
    return judge_unstarted(reason, evidence, stale_after=look.stale_after), evidence


def _unreadable(store: ObjectStore, error: Exception) -> Verdict:
    """Say why an experiment cannot be read; what nobody foresaw is logged, too."""
    if isinstance(error, StateUnreadableError):
        return Verdict(Health.UNREADABLE, error.reason, {})
    known = error if isinstance(error, TuneRestoreError) else report_unexpected(store.uri, error)
    return Verdict(Health.UNREADABLE, str(known), {})


def _report_readable(
    store: ObjectStore, entries: list[Entry], path: str, evidence: Evidence, look: _ExamineOptions
) -> ExperimentReport:
    print_of_root = fingerprint(entries)
    facts, is_new = _facts(store, entries, path, print_of_root, look)
    left = facts.samples_left
    if facts.unfinished:  # then it does not bear on life and death
        facts = msgspec.structs.replace(facts, samples_left=None)
    else:
        evidence = evidence.having_looked_at(EvidenceKind.SAMPLES)
    evidence = replace(
        evidence,
        state_written=_written(entries, facts.state_file),
        committed_at=_committed_at(entries, facts.state_file),
    )
    health = judge(facts, evidence, stale_after=look.stale_after).health
    if health is Health.INTERRUPTED and facts.unfinished:
        facts = msgspec.structs.replace(facts, samples_left=left)
        if left is None:  # it will be restored, and people are told what is left
            facts = _with_samples(store, entries, facts)
            is_new = is_new or facts.samples_left is not None
        evidence = evidence.having_looked_at(EvidenceKind.SAMPLES)
    if health in RESTORABLE:
        if is_new and (doubt := read_doubt(store, entries, facts.trainables)):
            facts = msgspec.structs.replace(facts, warnings=(*facts.warnings, doubt))
        evidence = _gather_evidence(store, entries, facts, evidence, health, look)
        if (listed_now := _relist_after_commit(store, entries, look)) != entries:
            # once: what changes under our eyes again is no commit of the same restore
            return _report(store, listed_now, path, replace(look, looks_again=False))[0]
    health, reason, counted = judge(facts, evidence, stale_after=look.stale_after)
    if is_new and look.index and health is not Health.RUNNING:
        look.index.remember(path, print_of_root, facts)
    if look.explains:
        evidence = _look_back(store, entries, facts, evidence)
    return ExperimentReport(
        experiment=store.uri,
        name=Location.parse(store.uri).name,
        health=health,
        reason="; ".join([reason, *_notes(store, facts)]),
        trials=facts.trials,
        state_file=facts.state_file,
        last_write=evidence.last_write,
        samples_left=facts.samples_left,
        was_restored=was_restored(entries),
        abandoned=_abandoned(evidence),
        warnings=facts.warnings,
        evidence=describe_evidence(facts, evidence, counted, stale_after=look.stale_after),
    )


def _with_samples(store: ObjectStore, entries: list[Entry], facts: StateSummary) -> StateSummary:
    """Add how many samples are left, and whether they can still be drawn."""
    left = read_samples_left(store, entries, facts.total)
    lost = read_lost_searcher(store, entries, facts.trainables) if left else ""
    return msgspec.structs.replace(facts, samples_left=left, searcher_lost=lost)


def _notes(store: ObjectStore, facts: StateSummary) -> list[str]:
    """Return what people should know beside the verdict."""
    if not (facts.samples_left and facts.searcher_lost):
        return list(facts.warnings)
    lost = describe_lost_searcher(store.uri, facts.samples_left, facts.searcher_lost)
    return [*facts.warnings, lost]


def _facts(
    store: ObjectStore,
    entries: list[Entry],
    path: str,
    print_of_root: str | None,
    look: _ExamineOptions,
) -> tuple[StateSummary, bool]:
    """Return what the newest state says, and whether the index does not know it yet.

    Raises:
        StateUnreadableError: If none can be used. That is remembered, too.
    """
    known = look.index.look_up(path, print_of_root) if look.index else None
    if known is not None and look.spot_check is not None:
        look.spot_check.look(store, entries, path)
    if known is not None and known.unreadable:
        raise StateUnreadableError(store.uri, known.unreadable)
    if known is not None:
        return known, False
    try:
        return build_facts(read_outline(store, entries)), True
    except StateUnreadableError as error:
        if look.index:
            look.index.remember(path, print_of_root, unreadable_facts(error.reason))
        raise


def _gather_evidence(
    store: ObjectStore,
    entries: list[Entry],
    facts: StateSummary,
    evidence: Evidence,
    health: Health,
    look: _ExamineOptions,
) -> Evidence:
    """Before it is called dead: is a restore at work, a driver on Ray, are its trials written to."""
    evidence = _read_lease_and_driver(store, entries, evidence, look)
    if at_work(evidence) or health is not Health.INTERRUPTED or not look.stale_after:
        return evidence
    newest = look.pool.map(lambda name: _newest_in_trial(store, name), facts.unfinished_dirs)
    written = max(filter(None, newest), default=None)
    return replace(evidence, trials_written=written).having_looked_at(EvidenceKind.TRIAL_DIRS)


def _look_back(
    store: ObjectStore, entries: list[Entry], facts: StateSummary, evidence: Evidence
) -> Evidence:
    """Read the states of older runs, where there are any; facts name no trials."""
    if older := older_states(entries, facts.state_file):
        notes = describe_older_runs(store, older, read_outline(store, entries).state)
        evidence = replace(evidence, older_runs=notes)
    return evidence.having_looked_at(EvidenceKind.OLDER)


def _abandoned(evidence: Evidence) -> int | None:
    restore = evidence.restore
    return restore.lease.epoch if restore is not None and not restore.is_alive else None


def _read_lease_and_driver(
    store: ObjectStore, entries: list[Entry], evidence: Evidence, look: _ExamineOptions
) -> Evidence:
    """Ask whether a restore is at work, and whether a driver runs."""
    if look.asks_for_restore:
        restore = read_lease_status(store, entries, look.now)
        evidence = replace(evidence, restore=restore).having_looked_at(EvidenceKind.RESTORE)
    if look.ask_driver is not None:
        evidence = replace(evidence, driver=look.ask_driver(store.uri))
    return evidence


def _relist_after_commit(
    store: ObjectStore, entries: list[Entry], look: _ExamineOptions
) -> list[Entry]:
    """List the root once more if a restore may have committed since it was listed.

    Its lease is released by then, so that neither listing alone shows that somebody was at work.
    """
    may_have = was_restored(entries) and look.asks_for_restore and look.looks_again
    return store.list_dir() if may_have else entries


def _newest_in_trial(store: ObjectStore, trial_dir: str) -> datetime | None:
    """Return the newest write to a trial's directory, or to its newest checkpoint.

    Workers upload checkpoints by themselves; result rows come with the driver's snapshots, which may be
    rare. Of the checkpoints only the newest is listed, one level deep. A directory that is a link to
    itself has no writes.
    """
    try:
        entries = store.list_dir(trial_dir)
    except CannotBeFollowedError:
        return None
    checkpoints = [
        entry.name
        for entry in entries
        if entry.is_dir
        and entry.name.startswith(layout.CHECKPOINT_PREFIX)
        and is_segment(entry.name)
    ]
    times = [_newest(entries)]
    if checkpoints:
        times.append(_newest(store.list_dir(f"{trial_dir}/{max(checkpoints)}")))
    return max(filter(None, times), default=None)


def _without_state(
    store: ObjectStore, verdict: Verdict, evidence: Evidence, look: _ExamineOptions
) -> ExperimentReport:
    return ExperimentReport(
        experiment=store.uri,
        name=Location.parse(store.uri).name,
        health=verdict.health,
        reason=verdict.reason,
        trials={},
        state_file=None,
        last_write=evidence.last_write,
        samples_left=None,
        evidence=describe_evidence(None, evidence, verdict.counted, stale_after=look.stale_after),
    )


def _written(entries: list[Entry], name: str) -> datetime | None:
    """Return when an object was written; None if there is none, or the store does not tell."""
    return next((entry.modified_at for entry in entries if entry.name == name), None)


def _committed_at(entries: list[Entry], state_file: str) -> datetime | None:
    """Return when the newest state was written, if a commit of ours did."""
    return _written(entries, state_file) if layout.is_committed_state(state_file) else None


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


def _is_experiment(entries: list[Entry]) -> bool:
    return any(
        not entry.is_dir and (entry.name == layout.TUNER_FILE or layout.is_state_file(entry.name))
        for entry in entries
    )


def _holds_states_of_ray(entries: list[Entry]) -> bool:
    """Whether one is named as Ray names them; others may have come there in any way."""
    return any(layout.state_session(entry.name) for entry in entries if not entry.is_dir)


def _would_be_options(store: ObjectStore, name: str) -> bool:
    """Whether an address would end before this name does, at a `?` that another `name=` follows."""
    return Location.parse(store.at(name).uri).options != Location.parse(store.uri).options


def _may_hold_experiments(store: ObjectStore, entry: Entry) -> bool:
    """Leave out our own directory, hidden ones, and checkpoints of trials that lost their experiment."""
    if not entry.is_dir or entry.is_link or entry.name.startswith("."):
        return False
    if not is_safe_name(entry.name) or _would_be_options(store, entry.name):
        log.warning(
            "%s: %s is not looked into: no address can hold this name",
            *(store.uri, printable(ascii(entry.name), 100)),
        )
        return False
    return checkpoint_index(entry.name) < 0
