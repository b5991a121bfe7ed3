"""The columns that a table of trials can show of a state: hyper-parameters, results, checkpoints.

A row has 13 KB, and a table needs less than one of them. So each row is read once, while it is in memory,
and a few names and short values of it are kept, packed. Rows are untrusted: names, texts and the sum of
all are bounded.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from airflow_tune_restore.experiments.parameters import cut, leaves, text_of
from airflow_tune_restore.experiments.raw_row import (
    MalformedStateError,
    RawRow,
    checkpoint_fields,
)
from airflow_tune_restore.experiments.trial import Trial, follow_metric
from airflow_tune_restore.protocol.numbers import MAX_COUNT
from airflow_tune_restore.protocol.printable import printable

Cell = str | float | int | bool | None
"""A value in a table, as strict JSON has it."""

CONFIG, METRICS = "config/", "metrics/"
"""Begin the names of columns of hyper-parameters, and of values of the last result."""

RAY_FIELDS = frozenset(
    (
        "checkpoint_dir_name date done episodes_total experiment_tag hostname "
        "iterations_since_restore node_ip pid should_checkpoint time_since_restore time_this_iter_s "
        "time_total_s timestamp timesteps_since_restore timesteps_total training_iteration trial_id"
    ).split()
)
"""Fields that Ray adds to each result (ray.tune.result.AUTO_RESULT_KEYS, 2.60): metrics come first."""

TIME_TOTAL = "time_total_s"

MAX_NAMES = 200
"""Of one config and of one result, and of all columns that are offered."""

NAME_LENGTH, TEXT_LENGTH = 100, 200

MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Of one experiment: fifty thousand trials with as many values as real ones have."""

_NOT_FINITE = ("nan", "inf", "-inf")


class Facts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The values kept of one row, by Ray's flat names (`a/b`), without `config/` and `metrics/`."""

    config: dict[str, Cell] = {}
    result: dict[str, Cell] = {}
    checkpoint: str | None = None
    resources: dict[str, float] = {}


_NOTHING = Facts()
_FACTS = msgspec.json.Decoder(Facts)


class Columns:
    """The values of all trials of one state; it collects them while the state is read."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._kept_bytes = 0
        self._fields = checkpoint_fields()
        self._config: dict[str, Cell] = {}
        self._results: dict[str, None] = {}
        self._counts: dict[str, int] = {}
        self._differing: set[str] = set()
        self._with_config = 0
        self.left_out = 0
        """How many trials have no values here, because the others had too many."""

    def add(self, trial: Trial, row: RawRow) -> None:
        """Take the values of the next trial."""
        packed = b""
        if self._kept_bytes < MAX_KEPT_BYTES:
            facts = _NOTHING if trial.unusable else self._read(row)
            self._compare(facts)
            packed = msgspec.json.encode(facts)
        else:
            self.left_out += 1
        self._kept_bytes += len(packed)
        self._packed.append(packed)

    def facts(self, number: int) -> Facts:
        """Return what is kept of the trial with this number, from 0 in the order of the state."""
        packed = self._packed[number]
        return _FACTS.decode(packed) if packed else _NOTHING

    def all_facts(self) -> Iterator[Facts]:
        """Yield what is kept of each trial, in the order of the state."""
        return map(self.facts, range(len(self._packed)))

    def column(self, name: str) -> list[Cell]:
        """Return the values of a column `config/…` or `metrics/…`; None where a trial has none."""
        if name.startswith(CONFIG):
            return [facts.config.get(name.removeprefix(CONFIG)) for facts in self.all_facts()]
        key = name.removeprefix(METRICS)
        return [_number_or_text(facts.result.get(key)) for facts in self.all_facts()]

    @property
    def kept_bytes(self) -> int:
        """How much memory the values take, about."""
        return self._kept_bytes

    @property
    def differing(self) -> list[str]:
        """The hyper-parameters in which the trials differ, those that the search chose first."""
        return [
            f"{CONFIG}{name}"
            for name, count in self._counts.items()
            if name in self._differing or count < self._with_config
        ]

    @property
    def names(self) -> list[str]:
        """The columns that can be shown, at most `MAX_NAMES`: differing parameters, metrics, others."""
        own = [name for name in self._results if name not in RAY_FIELDS]
        rays = [name for name in self._results if name in RAY_FIELDS]
        metrics = [f"{METRICS}{name}" for name in own + rays]
        same = (f"{CONFIG}{name}" for name in self._config)
        half = MAX_NAMES // 2  # neither hides the other
        first = [*self.differing[:half], *metrics[:half]]
        return list(dict.fromkeys([*first, *same, *metrics, *self.differing]))[:MAX_NAMES]

    def _read(self, row: RawRow) -> Facts:
        config, chosen = row.config()
        # the config is what the trial runs with; PBT changes it, and not the record of the choice
        tops = [(name, follow_metric(config, name)) for name in islice(chosen, MAX_NAMES)]
        first = [(name, value) for name, value in tops if value is not None]
        return Facts(
            flat_cells([*first, *config.items()]),
            flat_cells(item for item in row.last_result().items() if item[0] != "config"),
            self._checkpoint(row),
            row.resources(),
        )

    def _checkpoint(self, row: RawRow) -> str | None:
        try:
            recorded = row.recorded_checkpoint(self._fields)
        except MalformedStateError:
            return None
        return printable(recorded.name) if recorded is not None else None

    def _compare(self, facts: Facts) -> None:
        """Note the names, and in which parameters this trial differs from the first that has them."""
        self._with_config += bool(facts.config)
        for name, value in facts.config.items():
            if name not in self._config:
                if len(self._config) >= MAX_NAMES:
                    continue
                self._config[name] = value
            elif self._config[name] != value:
                self._differing.add(name)
            self._counts[name] = self._counts.get(name, 0) + 1
        if len(self._results) < MAX_NAMES:
            self._results.update(dict.fromkeys(facts.result))


def flat_cells(values: Iterable[tuple[str, Any]]) -> dict[str, Cell]:
    """Return the first values by their flat names, all of them fit to be shown."""
    found: dict[str, Cell] = {}
    for top, value in islice(values, 2 * MAX_NAMES):  # chosen parameters come twice
        if len(found) >= MAX_NAMES:
            break
        if type(value) is not dict:  # as nearly all, and twice as fast
            found.setdefault(shown_name(top), cell(value))
            continue
        for name, leaf in islice(leaves([(top, value)]), MAX_NAMES - len(found)):
            found.setdefault(shown_name(name), cell(leaf))
    return found


@lru_cache(maxsize=4096)
def shown_name(name: str) -> str:
    """Return the name of a parameter or a metric as columns have it."""
    return cut(printable(name), NAME_LENGTH)


def cell(value: Any) -> Cell:
    """Return a value as strict JSON has it; NaN and infinities, and numbers that it would round, as text.

    What is not a scalar becomes a short text.
    """
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is str:
        return printable(value, TEXT_LENGTH)
    if kind is int:
        return value if abs(value) <= MAX_COUNT else cut(str(value), TEXT_LENGTH)
    return value if value is None or kind is bool else text_of(value)


def number_columns(values: Mapping[str, Any]) -> list[str]:
    """Return the flat names of the numbers in a result, NaN and infinities included."""
    return [
        shown_name(name)
        for name, value in islice(leaves(values.items()), MAX_NAMES)
        if type(value) in (int, float)
    ]


def _number_or_text(value: Cell) -> Cell:
    """Return a metric for a column: a text instead of a number is a NaN or infinity, so there is none."""
    return None if value in _NOT_FINITE else value
