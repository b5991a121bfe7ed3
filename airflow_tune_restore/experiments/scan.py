"""Prefix -> a report on every experiment below it. Checkpoints are not walked.

A scan with an index (`index`) reads only the states that have changed since the last scan, and some
others by chance: if the index is wrong there (`spot_check`), all are read again. Roots are always listed,
because only a listing shows a change.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from queue import SimpleQueue
from typing import NamedTuple

from airflow_tune_restore.experiments.evidence import DriverStatus
from airflow_tune_restore.experiments.examine import (
    ExamineOptions,
    examine_listed,
    is_experiment,
    report_unreadable,
)
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, ExperimentReport
from airflow_tune_restore.experiments.index import Index, read_index
from airflow_tune_restore.experiments.scan_filter import ScanFilter
from airflow_tune_restore.experiments.spot_check import Chance, SpotCheck, fresh_chance
from airflow_tune_restore.protocol.checkpoints import checkpoint_index
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.in_flight import IN_FLIGHT
from airflow_tune_restore.storage.location import Location

THREADS = 64
"""Requests in flight: more gained nothing on the test server, and fewer wait longer on a distant one."""

_EVERYTHING = ScanFilter()


class _Below(NamedTuple):
    """A directory to visit: the place a link leads to, if it is one, and its path below the prefix."""

    place: str
    path: str


_Visited = tuple[ExperimentReport | None, list[_Below]]
"""The result of one directory: a report, and the directories to visit below it."""

log = logging.getLogger(__name__)


def scan(
    store: ObjectStore,
    *,
    stale_after: timedelta = DEFAULT_STALE_AFTER,
    selection: ScanFilter = _EVERYTHING,
    use_index: bool = True,
    ask_driver: Callable[[str], DriverStatus] | None = None,
    ask_holder: AskHolder | None = None,
    explains: bool = False,
    chance: Chance | None = None,
) -> list[ExperimentReport]:
    """Report on every experiment at or below the store's root, sorted by URI.

    An experiment is a directory that holds `tuner.pkl` or a state file. One that cannot be read is
    reported as such and does not hide the others; nor those below it, if no state file there has a name
    as Ray makes them. A scan does not descend into experiments, and does not follow links to directories
    of the same prefix: each experiment is found once, by its own name. Of several links to one place
    elsewhere, the one with the smallest path is followed.

    `use_index` keeps an index in the prefix, and reads only what has changed since. `chance` chooses the
    rows of it that are checked; None for unpredictable ones. The rest is as in `ExamineOptions`.
    """
    root = store.list_dir()
    at_root = is_experiment(root)  # then its `.tune_restore` is not that of a prefix
    index = read_index(store) if use_index and not at_root else None
    spot_check = SpotCheck(index, chance or fresh_chance()) if index is not None else None
    with ThreadPoolExecutor(THREADS) as threads, ThreadPoolExecutor(IN_FLIGHT) as pool:
        options = ExamineOptions(
            now=store.now(),
            stale_after=stale_after,
            ask_driver=ask_driver,
            ask_holder=ask_holder,
            index=index,
            spot_check=spot_check,
            explains=explains,
            pool=pool,
        )
        reports = list(_walk(threads, store, root, selection, options))
        if spot_check is not None and not spot_check.agrees(store, threads):
            index = Index(replaces_forged=True)
            options = replace(options, index=index, spot_check=None)
            reports = list(_walk(threads, store, root, selection, options))
    if index is not None:
        index.write(store, was_complete=selection.includes_all)
    return sorted(reports, key=lambda report: report.experiment)


def _walk(
    threads: ThreadPoolExecutor,
    store: ObjectStore,
    root: list[Entry],
    selection: ScanFilter,
    options: ExamineOptions,
) -> Iterator[ExperimentReport]:
    """Yield reports as they arrive; a directory that is not an experiment adds those below it.

    Links that lead elsewhere are followed after everything else, in the order of their names, and one
    per place: links that lead to each other would never end, and which of two is followed must not
    depend on the order of threads.
    """
    followed: set[str] = set()
    links: list[_Below] = []
    ended: SimpleQueue[Future[_Visited]] = SimpleQueue()
    first: Future[_Visited] = Future()
    first.add_done_callback(ended.put)
    first.set_result(_visit_safely(store, "", selection, options, entries=root))
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
            visit = threads.submit(_visit_safely, store.at(path), path, selection, options)
            visit.add_done_callback(ended.put)
        if report is not None:
            yield report


def _visit_safely(
    store: ObjectStore,
    path: str,
    selection: ScanFilter,
    options: ExamineOptions,
    *,
    entries: list[Entry] | None = None,
) -> _Visited:
    """Visit a directory; an error in it does not stop the visits of the others."""
    try:
        entries = store.list_dir() if entries is None else entries
        return _visit(store, entries, path, selection, options)
    except Exception as error:  # noqa: BLE001  reported, and it must not hide the others
        return report_unreadable(store, error, options), []


def _visit(
    store: ObjectStore,
    entries: list[Entry],
    path: str,
    selection: ScanFilter,
    options: ExamineOptions,
) -> _Visited:
    """Return the report of an experiment, or the paths of the directories to visit below this one.

    Both, where only a file makes it look like an experiment.
    """
    report = None
    if is_experiment(entries):
        if not selection.includes(path):
            return None, []
        report, is_one = examine_listed(store, entries, path, options)
        if is_one:
            if not path and any(_may_hold_experiments(store, entry) for entry in entries):
                # a user who can write to a prefix can make it one, and hide all of its experiments; but
                # each scan of one experiment is here, too: Airflow's logs show it, the shell does not
                log.info(
                    "%s is an experiment itself, so a scan does not look below it. That is right for the "
                    "address of one experiment. If experiments lie below it, scan the directories below.",
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
    return report, [item for item in below if selection.descends_into(item.path)]


def _may_hold_experiments(store: ObjectStore, entry: Entry) -> bool:
    """Leave out hidden directories, those of this package, and checkpoints without an experiment."""
    if not entry.is_dir or entry.is_link or entry.name.startswith("."):
        return False
    # an address would end inside a name at a `?` that is followed by `name=`
    if not is_safe_name(entry.name) or (
        Location.parse(store.at(entry.name).uri).options != Location.parse(store.uri).options
    ):
        name = printable(ascii(entry.name), 100)
        log.warning("%s: %s is skipped: an address cannot hold this name", store.uri, name)
        return False
    return checkpoint_index(entry.name) < 0
