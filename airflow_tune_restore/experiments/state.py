"""Experiment state file -> rows and trials, and back.

The file is JSON inside JSON strings, about 13 KB per trial, and holds `NaN`, `Infinity` and `-Infinity`,
which strict parsers refuse. It is read piece by piece (ADR 0010): msgspec splits each piece into raw
rows, and `parse_row` decodes only the fields that a plan needs. A file with another layout than Ray's,
and the end of every file, are split by the regular expression `_ROW`. Raw rows are kept, so that a commit
can write untouched ones back byte for byte.
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from airflow_tune_restore.experiments.parameters import shown_of
from airflow_tune_restore.experiments.parse_row import parse_row
from airflow_tune_restore.experiments.raw_row import MalformedStateError, PackedRow, RawRow
from airflow_tune_restore.experiments.trial import Trial
from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.numbers import is_amount

MAX_DEPTH = 100
"""How deep the frame may nest. Ray's is five deep; at a thousand, writing it again would fail."""

MAX_SMALL_ROWS, SMALL_ROW_BYTES = 50_000, 2048
"""Of one state. A trial takes up to 3 KiB of memory, however short its row is, and as much again for its
parameters. Ray's rows have 4 KB and more (2.10 to 2.60), so that a file of `layout.MAX_STATE_BYTES`
bounds them by itself."""

MAX_FRAME_VALUES = 100_000
"""In the text around the rows: Ray's own has fifty, however many trials there are. They are kept."""

_STEP_BYTES = 256 * 1024
"""Split at once: some twenty rows, in memory that is in the cache and used again."""

_TRIALS_START = b'{"trial_data": ['
_BETWEEN_ROWS = b'"], ["'
"""Stands between two rows and not inside one, where each quote is escaped."""

_QUOTE = ord('"')
_BLANK = rb"[ \t\n\r]*+"
_TEXT_IN_FILE = rb'("(?:[^"\\]++|\\.)*+")'
_TRIALS = re.compile(rb'"trial_data"' + _BLANK + rb":" + _BLANK + rb"\[")
_ROW = re.compile(
    _BLANK.join(
        # a comma counts only with a row behind it
        (b"", rb"\[", _TEXT_IN_FILE, b",", _TEXT_IN_FILE, rb"\]", rb"(,(?=[ \t\n\r]*+\[))?")
    ),
    re.DOTALL,
)
_TRIALS_END = re.compile(_BLANK + rb"\]")

_Pairs = list[tuple[msgspec.Raw, msgspec.Raw]]
_ROWS = msgspec.json.Decoder(_Pairs)

_NO_PAIR = "not a whole experiment state (a row is cut off, or is not a pair of texts)"
"""Ray cannot read any row of such a state either, because it expects JSON in both."""


class RowCollector(Protocol):
    """Takes what it needs of each row of one state while the row is in memory."""

    def add(self, trial: Trial, row: RawRow) -> None:
        """Take the next trial, with its raw row."""


@dataclass(frozen=True, slots=True)
class State:
    """A parsed state file.

    Args:
        trials: In the order of the file.
        rows: The raw rows that were kept, by trial id, in the same order.
        runner: `runner_data` of the frame, as plain values.
        packed: The rows that were kept packed, by trial id, in the same order.
        collected: What `Keep.collect` made, after it got all rows; None without it.
    """

    trials: tuple[Trial, ...]
    rows: dict[str, RawRow]
    runner: dict[str, Any]
    stats: dict[str, Any]
    packed: dict[str, PackedRow] = field(default_factory=dict)
    collected: RowCollector | None = None

    @property
    def start_time(self) -> float:
        """Unix seconds at which the driver session that wrote it started; states are ordered by it."""
        value = self.stats.get("start_time")
        return float(value) if is_amount(value) else -math.inf

    @property
    def has_failed_fast(self) -> bool:
        """Whether `fail_fast` has stopped all trials after one failed."""
        return bool(self.runner.get("_fail_fast") and self.runner.get("_has_errored"))


NO_STATE = State((), {}, {}, {})
"""The state of an experiment whose driver died before it saved one."""


def parse_state(body: bytes) -> State:
    """Parse a state file and keep all its rows.

    Raises:
        MalformedStateError: If it is truncated, not an experiment state, or all of its rows are unusable.
    """
    return parse_pieces([body])


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How much of a state is kept in memory.

    Args:
        terminated_rows: Whether the rows of trials that terminated by themselves are kept: nearly all of
            a large experiment. Only running or committing them needs the rows.
        parameters: Whether the parameters of trials without a row are read before.
        shown: Whether trials have no row, but all that tables show of them, with the metric of this name.
        packed: With `shown`: whether their rows are kept beside them, packed.
        collect: Makes what gets all trials of a state with their rows, in the order of the file. Then no
            trial has a row.
    """

    terminated_rows: bool = True
    parameters: bool = False
    shown: bool = False
    packed: bool = False
    metric: str | None = None
    collect: Callable[[], RowCollector] | None = None

    def row_of(self, trial: Trial, pair: tuple[msgspec.Raw, msgspec.Raw]) -> RawRow | None:
        """Return the row of a trial to keep as it is; None if it is not kept so."""
        if self.shown or self.collect is not None:
            return None
        if self.terminated_rows:
            return RawRow(*pair)
        if trial.terminated_by_itself:
            return None
        return RawRow(*(raw.copy() for raw in pair))  # a copy does not keep its whole piece

    def without_row(self, trial: Trial, pair: tuple[msgspec.Raw, msgspec.Raw]) -> Trial:
        """Return a trial whose row is not kept, with what is read of the row before."""
        if not (self.shown or self.parameters):
            return trial
        # only a state that is compared with another one needs marks
        return shown_of(trial, RawRow(*pair), self.metric, is_marked=self.shown)


KEEP_ALL = Keep()
KEEP_UNTERMINATED = Keep(terminated_rows=False)


def parse_pieces(pieces: Iterable[bytes], keep: Keep = KEEP_ALL) -> State:
    """Parse a state file as it arrives.

    Raises:
        MalformedStateError: As `parse_state`.
    """
    trials: dict[str, Trial] = {}
    rows: dict[str, RawRow] = {}
    packed: dict[str, PackedRow] = {}
    collected = keep.collect() if keep.collect is not None else None
    small_rows = 0

    def add_rows(pairs: _Pairs) -> None:
        nonlocal small_rows
        for pair in pairs:
            size = len(memoryview(pair[0])) + len(memoryview(pair[1]))
            small_rows += size < SMALL_ROW_BYTES
            if small_rows > MAX_SMALL_ROWS:
                raise MalformedStateError(
                    f"it holds more than {MAX_SMALL_ROWS} trials of less than {SMALL_ROW_BYTES} bytes"
                )
            with bounded_json.alone(size):
                trial = parse_row(*pair, trials)
            if (trial.unusable or trial.odd_fields) and any(
                memoryview(raw)[0] != _QUOTE for raw in pair
            ):
                raise MalformedStateError(_NO_PAIR)
            if (row := keep.row_of(trial, pair)) is not None:
                rows[trial.trial_id] = row
                trial = msgspec.structs.replace(trial, row=row)
            else:
                with bounded_json.alone(size):
                    trial = keep.without_row(trial, pair)
            if collected is not None:
                with bounded_json.alone(size):
                    collected.add(trial, RawRow(*pair))
            if keep.packed:
                packed[trial.trial_id] = PackedRow.of(RawRow(*pair))
            trials[trial.trial_id] = trial

    frame = _split_pieces(pieces, add_rows)
    if not _is_shallow(frame):
        raise MalformedStateError(f"the text around its rows nests deeper than {MAX_DEPTH}")
    if trials and all(trial.unusable for trial in trials.values()):
        raise MalformedStateError(next(iter(trials.values())).unusable)
    parts = (frame.get(name) for name in ("runner_data", "stats"))
    runner, stats = (part if isinstance(part, dict) else {} for part in parts)
    return State(tuple(trials.values()), rows, runner, stats, packed, collected)


def encode_state(
    rows: Iterable[RawRow], runner: dict[str, Any], stats: dict[str, Any], **more: Any
) -> bytes:
    """Build a state file; rows go in byte for byte as they were read, `more` at its end."""
    writer = StateWriter()
    for row in rows:
        writer.add(row)
    return writer.end(runner, stats, **more)


class StateWriter:
    """Builds a state file row by row, so that no more than the file itself is in memory."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._file.write(_TRIALS_START)
        self._between = b""

    def add(self, row: RawRow) -> None:
        """Add a row, byte for byte as it was read."""
        self._file.writelines((self._between, b"[", row.trial, b", ", row.metadata, b"]"))
        self._between = b", "

    def end(self, runner: dict[str, Any], stats: dict[str, Any], **more: Any) -> bytes:
        """Return the file; `more` goes to its end."""
        tail = json.dumps({"runner_data": runner, "stats": stats, **more}).encode()
        self._file.writelines((b"], ", memoryview(tail)[1:]))
        return self._file.getvalue()  # not a copy


def _is_shallow(value: Any) -> bool:
    """Whether a document nests no deeper than `MAX_DEPTH`; without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def _split_pieces(pieces: Iterable[bytes], add_rows: Callable[[_Pairs], None]) -> dict[str, Any]:
    """Pass on rows as they arrive, and return the frame around them.

    The rest of a state after its first rows is a state itself, with a start put before it.
    """
    state, searched, may_cut = bytearray(), 0, True
    for step in _steps(pieces):
        state += step
        cut = state.rfind(_BETWEEN_ROWS, searched) if may_cut else -1
        searched = max(0, len(state) - len(_BETWEEN_ROWS))
        if cut < 0 or not state.startswith(_TRIALS_START):
            continue
        cut += len('"]')
        state[cut] = ord("]")  # in place of the comma
        try:
            pairs = _ROWS.decode(memoryview(state)[len(_TRIALS_START) - 1 : cut + 1])
        except (msgspec.DecodeError, ValueError):  # the same only since msgspec 0.21
            state[cut] = ord(",")
            may_cut = False  # these are strings behind the rows, or an unknown layout
            continue
        rest = state[cut + len(", ") :]
        state, searched = bytearray(_TRIALS_START) + rest, 0
        add_rows(pairs)
    return _split(state, add_rows)


def _steps(pieces: Iterable[bytes]) -> Iterator[memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), _STEP_BYTES):
            yield memoryview(piece)[start : start + _STEP_BYTES]


def _split(state: bytearray, add_rows: Callable[[_Pairs], None]) -> dict[str, Any]:
    """Pass on the rows of a state one by one, whatever its layout; return the frame around them."""
    start = _TRIALS.search(state)
    if start is None:
        raise MalformedStateError("not a whole experiment state (it has no trial_data)")
    view, end = memoryview(state), start.end()
    while row := _ROW.match(state, end):
        add_rows([(msgspec.Raw(view[slice(*row.span(1))]), msgspec.Raw(view[slice(*row.span(2))]))])
        end = row.end()
        if not row[3]:
            break
    if _TRIALS_END.match(state, end) is None:
        raise MalformedStateError(_NO_PAIR)
    return _read_frame(view[: start.end()], view[end:])


def _read_frame(before: memoryview, after: memoryview) -> dict[str, Any]:
    """Read the text before and after the rows."""
    try:
        bounded_json.check_size(len(before) + len(after))
        around = bounded_json.load(bytes(before) + bytes(after), most_values=MAX_FRAME_VALUES)
    except (ValueError, RecursionError) as error:
        reason = f"not a whole experiment state (around its rows: {error})"
        raise MalformedStateError(reason) from error
    if not isinstance(around, dict) or around.pop("trial_data", None) != []:
        raise MalformedStateError("not a whole experiment state (its trial_data is not its own)")
    return around
