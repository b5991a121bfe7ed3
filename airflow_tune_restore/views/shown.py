"""Store -> all that is shown of the state of one experiment, kept as long as its root is the same.

A large state takes most of a second to read. What is kept of it takes a fiftieth of its size: the trials
without their rows, and short values of each (`views.columns`).
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from airflow_tune_restore.exceptions import StateUnreadableError, UnknownTrialError
from airflow_tune_restore.experiments.evidence import EvidenceKind, EvidenceRow
from airflow_tune_restore.experiments.examine import is_experiment
from airflow_tune_restore.experiments.experiment import Experiment, RecordedTuner
from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import (
    NewestState,
    NotStartedError,
    StateReader,
    not_an_experiment,
    read_experiment,
)
from airflow_tune_restore.experiments.root import Root, list_root
from airflow_tune_restore.experiments.state import Keep
from airflow_tune_restore.experiments.trial import Trial
from airflow_tune_restore.experiments.tuner_file import read_tuner
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.views.columns import Columns

MAX_EXPERIMENTS, MAX_TRIALS = 32, 50_000
"""Of all experiments that a process keeps: some 2 KB of memory for each trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownExperiment:
    """One experiment as its root was listed.

    Args:
        entries: The listing of its root; as long as that is the same, so is all of this.
        experiment: None if no state can be used, or none has a trial.
        newest: Its state as it was read; None as above.
        error: Why not; None if it can be used.
        tuner: The content of `tuner.pkl`, also without a state.
        older_runs: What older runs under its name left that its newest state hides, in words.
    """

    entries: list[Entry] = field(repr=False)
    experiment: Experiment | None = None
    newest: NewestState | None = field(default=None, repr=False)
    error: StateUnreadableError | NotStartedError | None = None
    tuner: RecordedTuner | None = None
    older_runs: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns, repr=False)
    numbers: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials in the order of the state; none without a state."""
        return self.experiment.trials if self.experiment is not None else ()

    @property
    def state_file(self) -> str | None:
        """The name of its state file; None without one."""
        return self.experiment.state_file.name if self.experiment is not None else None

    @property
    def metric(self) -> str | None:
        """The metric of the search; the state knows it, too, where `tuner.pkl` cannot be read."""
        if self.tuner is not None and self.tuner.metric:
            return self.tuner.metric
        recorded = self.experiment.state.runner.get("_metric") if self.experiment else None
        return recorded if isinstance(recorded, str) and recorded else None

    @property
    def mode(self) -> str | None:
        """`max` or `min`; None if unknown."""
        mode = self.tuner.mode if self.tuner is not None else None
        return mode if mode in ("max", "min") else None

    def number_of(self, uri: str, trial_id: str) -> int:
        """Return the place of a trial in the state, from 0.

        Raises:
            UnknownTrialError: If it has no such trial.
        """
        if trial_id in self.numbers:
            return self.numbers[trial_id]
        if self.experiment is not None:
            self.experiment.check_has([trial_id])
        raise UnknownTrialError(
            f"{uri} has no trial {printable(trial_id)!r}: it has no state that can be used."
        )

    def read_state(self, _store: ObjectStore, _entries: list[Entry]) -> NewestState:
        """Return its state without reading again; raises as `read_experiment`."""
        if self.newest is None:
            raise self.error or AssertionError("it has a state or an error")
        return self.newest

    @property
    def older_row(self) -> EvidenceRow | None:
        """The line of the evidence on older runs; None without a state."""
        if self.newest is None:
            return None
        found = "; ".join(self.older_runs) or "none"
        return EvidenceRow(name=EvidenceKind.OLDER, found=found)


def read_shown(store: ObjectStore, entries: list[Entry]) -> ShownExperiment:
    """Read the experiment at the store's root, by its listing.

    Raises:
        StateUnreadableError: If this is not an experiment.
        StorageError: If the store does not answer.
    """
    if not is_experiment(entries):
        raise not_an_experiment(store)
    reader = StateReader(Keep(collect=Columns))
    try:
        newest = reader(store, entries)
        experiment = read_experiment(store, entries, read_state=reader)
    except (StateUnreadableError, NotStartedError) as error:
        tuner = read_tuner(store, entries).recorded
        return ShownExperiment(entries=entries, error=error, tuner=tuner)
    state, columns = newest.state, newest.state.collected
    older = older_states(entries, newest.file.name)
    return ShownExperiment(
        entries=entries,
        experiment=experiment,
        newest=newest,
        tuner=experiment.tuner,
        older_runs=describe_older_runs(store, older, state) if older else (),
        columns=columns if isinstance(columns, Columns) else Columns(),
        numbers={trial.trial_id: number for number, trial in enumerate(state.trials)},
    )


class ShownExperiments:
    """Reads experiments, and keeps the last ones for as long as the listings of their roots are the same.

    Threads may read at once; two that want the same experiment wait for one reading of it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Place] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, store: ObjectStore, address: str) -> tuple[ShownExperiment, Root]:
        """Return the experiment at the store's root, and the listing that it was just found by.

        `address` tells stores with other credentials or endpoints apart. Raises as `read_shown`.
        """
        with self._lock:
            place = self._kept.setdefault(address, _Place())
            self._kept.move_to_end(address)
        try:
            return place.read(store)
        finally:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        with self._lock:
            while len(self._kept) > 1 and self._is_full():
                self._kept.popitem(last=False)

    def _is_full(self) -> bool:
        kept = [place.shown for place in self._kept.values() if place.shown is not None]
        trials = sum(len(shown.trials) for shown in kept)
        return len(self._kept) > MAX_EXPERIMENTS or trials > MAX_TRIALS


class _Place:
    """The place of one experiment: threads read it one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.shown: ShownExperiment | None = None

    def read(self, store: ObjectStore) -> tuple[ShownExperiment, Root]:
        """Return the experiment, which is read again if its root has changed."""
        with self._lock:
            root = list_root(store)
            if self.shown is None or self.shown.entries != root.entries:
                self.shown = None  # not both in memory
                self.shown = read_shown(store, root.entries)
            return self.shown, root
