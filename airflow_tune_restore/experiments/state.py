"""Experiment state JSON -> rows.

The file is JSON inside JSON strings, about 13 KB a trial, and holds `NaN`, `Infinity` and `-Infinity`,
which strict parsers refuse. It is taken in piece by piece: msgspec splits what has come in into raw rows,
and each row's two inner documents are decoded into just the fields a plan needs, the second without its
long end, which holds none; a document that holds a non-finite number falls back to the stdlib parser,
string by string. What is not laid out as Ray does it, and the end, is split by `_ROW`.
Whatever the file holds, reading it takes little more memory than its bytes: rows are counted, each
document is bounded (`bounded_json`), and of what is around the rows little is allowed.
Fields that no plan needs are not looked at. One that is needed and cannot be used costs its trial what it
was needed for, at worst that trial, never the file: Ray reads it, too.
Raw rows stay, so that a commit can put untouched ones back byte for byte. Whoever commits nothing may let
go of those whose trials came to their end: they are nearly all of the file.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import msgspec

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.trial import Trial, TrialEnd, TrialStatus, follow_metric
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.checkpoints import RecordedCheckpoint
from airflow_tune_restore.protocol.names import (
    is_key_name,
    is_resource,
    is_safe_name,
    is_segment,
    is_trainable_name,
)
from airflow_tune_restore.protocol.numbers import (
    is_amount,
    read_iteration,
    whole_iteration,
)
from airflow_tune_restore.protocol.pickle_reader import (
    Mapping,
    SymbolicError,
    attribute,
    read_pickle,
)
from airflow_tune_restore.protocol.printable import printable

MAX_DEPTH = 100
"""How deep the frame may nest. Ray's is five deep; at a thousand, writing it again would fail."""

MAX_SMALL_ROWS, SMALL_ROW_BYTES = 50_000, 2048
"""Of one state. A trial takes up to 3 KiB of memory, however short its row is; Ray's have 4 KB and more
(2.10 to 2.60), so that a file of `layout.MAX_STATE_BYTES` bounds them by itself."""

MAX_FRAME_VALUES = 100_000
"""In what stands around the rows: Ray's own has fifty, however many trials there are. They are kept."""

_STEP_BYTES = 256 * 1024
"""Split at once: some twenty rows, in memory that is in the cache and used again."""

_MAX_BUNDLES = 10_000
_MAX_FACTORY_CHARACTERS = 1024 * 1024
_MAX_RESOURCES = 100
"""Names in one trial's resources; people have five."""


_UNREADABLE = "row-"
"""Begins the id of a trial whose row has none that can be used; the number of the row follows."""

_TRIALS_START = b'{"trial_data": ['
_BETWEEN_ROWS = b'"], ["'
"""Stands between two rows and not inside one, where each quote is escaped."""

_QUOTE = ord('"')
_BLANK = rb"[ \t\n\r]*+"
_TEXT_IN_FILE = rb'("(?:[^"\\]++|\\.)*+")'
_TRIALS = re.compile(rb'"trial_data"' + _BLANK + rb":" + _BLANK + rb"\[")
_ROW = re.compile(
    _BLANK.join(
        # a comma is taken only with a row behind it
        (b"", rb"\[", _TEXT_IN_FILE, b",", _TEXT_IN_FILE, rb"\]", rb"(,(?=[ \t\n\r]*+\[))?")
    ),
    re.DOTALL,
)
_TRIALS_END = re.compile(_BLANK + rb"\]")

_REST_OF_METADATA = b',\\n  \\"metric_analysis\\": '
"""Nine tenths of a row come after this, at this depth (Ray 2.40 to 2.60), and no plan needs them."""

_END = b'\\n}"'

_DONE, _DONE_BYTES = b'\\n    \\"done\\": {', 300
_LAST_IS_TRUE = b'\\"last\\": true'
"""The analysis of `done`, a metric like any other to Ray, behind that."""

_BRIEF_BYTES = 8192
"""How far it is looked for; what is in front of it holds one result, with the tag of its trial."""

T = TypeVar("T")
_Pairs = list[tuple[msgspec.Raw, msgspec.Raw]]


_NO_PAIR = "not a whole experiment state (a row is cut off, or is not a pair of texts)"
"""Ray can read no row of such a state either, for it expects JSON in both."""


class MalformedStateError(TuneRestoreError):
    """A state file that cannot be used; the text says why."""


class _RowHead(msgspec.Struct):
    trial_id: str
    status: Any  # must be there
    trainable_name: Any = ""
    relative_logdir: Any = None
    stopping_criterion: Any = None


class _Iteration(msgspec.Struct):
    training_iteration: Any = 0  # the trainable's own metrics may have taken all three names
    time_this_iter_s: Any = None
    done: Any = None
    checkpoint_dir_name: Any = msgspec.UNSET


class _RunMetadata(msgspec.Struct):
    last_result: _Iteration | None = None
    last_result_time: Any = None
    start_time: Any = None


class _LastResult(msgspec.Struct):
    last_result: dict[str, Any]


class _Resources(msgspec.Struct):
    placement_group_factory: Any = None


class _Checkpoints(msgspec.Struct):
    checkpoint_manager: Any = None


@dataclass(frozen=True, slots=True)
class RawRow:
    """One `[trial_json, metadata_json]` pair as it stands in the file, quotes and all."""

    trial: msgspec.Raw
    metadata: msgspec.Raw

    @property
    def is_readable(self) -> bool:
        """Whether it is small enough for whoever reads a state."""
        most = bounded_json.MAX_DOCUMENT_BYTES
        return max(memoryview(self.trial).nbytes, memoryview(self.metadata).nbytes) <= most

    def config(self) -> dict[str, Any]:
        """Return the full config."""
        return _dict(_field(self.trial, "config"))

    def evaluated_params(self) -> dict[str, Any]:
        """Return the sampled part of the config."""
        return _dict(_field(self.trial, "evaluated_params"))

    def last_result(self) -> dict[str, Any]:
        """Return the last result."""
        return _dict(_field(self.metadata, "last_result"))

    def resources(self) -> dict[str, float]:
        """Sum the bundles of the placement group factory (ray.tune.execution, 2.60); {} if unreadable."""
        try:
            pickled = _decode(self.trial, _RESOURCES).placement_group_factory
        except MalformedStateError:  # a number of 5,000 digits
            return {}
        hex_of = _hex_of_pickle(pickled) or ""
        return dict(_sum_bundles(hex_of) if len(hex_of) <= _MAX_FACTORY_CHARACTERS else ())

    def recorded_checkpoint(self) -> RecordedCheckpoint | None:
        """Read the latest registered checkpoint (ray.train._internal.checkpoint_manager, 2.60).

        Raises:
            MalformedStateError: If a record is there and cannot be read: that is not "none".
        """
        pickled = _decode(self.metadata, _CHECKPOINTS).checkpoint_manager
        manager = read_hex_pickle(pickled)
        if manager is None and pickled is not None:
            raise MalformedStateError("the record of its checkpoints cannot be read")
        latest = attribute(manager, "_latest_checkpoint_result")
        path = attribute(latest, "checkpoint", "path")
        if path is None:
            return None
        name = path.rstrip("/").rpartition("/")[2] if isinstance(path, str) else ""
        if not is_segment(name):
            raise MalformedStateError("the path of its checkpoint leads outside or is not a path")
        iteration = attribute(latest, "metrics", "training_iteration")
        return RecordedCheckpoint(name=name, iteration=whole_iteration(iteration))


@dataclass(frozen=True, slots=True)
class State:
    """A parsed state file.

    Args:
        trials: In the order of the file.
        rows: The raw rows that were kept, by trial id, in the same order.
        runner: `runner_data` of the frame, as plain values.
        stats: `stats` of the frame.
    """

    trials: tuple[Trial, ...]
    rows: dict[str, RawRow]
    runner: dict[str, Any]
    stats: dict[str, Any]

    @property
    def start_time(self) -> float:
        """Unix seconds at which the driver session that wrote it started; what orders states."""
        value = self.stats.get("start_time")
        return float(value) if is_amount(value) else -math.inf


NO_STATE = State((), {}, {}, {})
"""Of an experiment whose driver died before it saved one."""


_STATUSES = {status.value: status for status in TrialStatus}
_TEXT = msgspec.json.Decoder(str)
_ROWS = msgspec.json.Decoder(list[tuple[msgspec.Raw, msgspec.Raw]])
_RESOURCES = msgspec.json.Decoder(_Resources)
_CHECKPOINTS = msgspec.json.Decoder(_Checkpoints)
_HEAD, _RUN = msgspec.json.Decoder(_RowHead), msgspec.json.Decoder(_RunMetadata)
_LAST = msgspec.json.Decoder(_LastResult)


def parse_state(body: bytes) -> State:
    """Parse a state file and keep all its rows.

    Raises:
        MalformedStateError: If it is truncated, not an experiment state, or no row of it can be used.
    """
    return parse_pieces([body], keep_terminated_rows=True)


def parse_pieces(pieces: Iterable[bytes], *, keep_terminated_rows: bool) -> State:
    """Parse a state file as it comes in.

    Args:
        pieces: Its bytes, in order.
        keep_terminated_rows: Keep the rows of trials that came to their end, too.

    Raises:
        MalformedStateError: As `parse_state`.
    """
    trials: dict[str, Trial] = {}
    rows: dict[str, RawRow] = {}
    small_rows = 0

    def take(pairs: _Pairs) -> None:
        nonlocal small_rows
        for pair in pairs:
            size = len(memoryview(pair[0])) + len(memoryview(pair[1]))
            small_rows += size < SMALL_ROW_BYTES
            if small_rows > MAX_SMALL_ROWS:
                raise MalformedStateError(
                    f"it holds more than {MAX_SMALL_ROWS} trials of less than {SMALL_ROW_BYTES} bytes"
                )
            with bounded_json.alone(size):
                trial = _read_row(*pair, trials)
            if (trial.unusable or trial.odd_fields) and not (
                _is_text(pair[0]) and _is_text(pair[1])
            ):
                raise MalformedStateError(_NO_PAIR)
            if keep_terminated_rows or not trial.terminated_by_itself:
                # a copy lets go of the piece it stands in
                row = (
                    RawRow(*pair) if keep_terminated_rows else RawRow(*(raw.copy() for raw in pair))
                )
                rows[trial.trial_id] = row
                trial = msgspec.structs.replace(trial, details=row)
            trials[trial.trial_id] = trial

    rest = _split_pieces(pieces, take)
    if not _is_shallow(rest):
        raise MalformedStateError(f"what stands around its rows nests deeper than {MAX_DEPTH}")
    if trials and all(trial.unusable for trial in trials.values()):
        raise MalformedStateError(next(iter(trials.values())).unusable)
    return State(
        tuple(trials.values()), rows, _dict(rest.get("runner_data")), _dict(rest.get("stats"))
    )


def encode_state(rows: Iterable[RawRow], runner: dict[str, Any], stats: dict[str, Any]) -> bytes:
    """Put a state file together; rows go in byte for byte as they were read."""
    parts: list[Any] = [_TRIALS_START]
    for row in rows:
        parts += (b"[", row.trial, b", ", row.metadata, b"]", b", ")
    if len(parts) > 1:
        parts.pop()
    tail = json.dumps({"runner_data": runner, "stats": stats}).encode()
    return b"".join([*parts, b"], ", memoryview(tail)[1:]])


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


def _split_pieces(pieces: Iterable[bytes], take: Callable[[_Pairs], None]) -> dict[str, Any]:
    """Hand over rows as they come in, and return what stands around them.

    What is left of a state after its first rows is a state itself, with a start put before it.
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
        except ValueError:
            state[cut] = ord(",")
            may_cut = False  # these are strings behind the rows, or nothing we know
            continue
        rest = state[cut + len(", ") :]
        state, searched = bytearray(_TRIALS_START) + rest, 0
        take(pairs)
    return _split(state, take)


def _steps(pieces: Iterable[bytes]) -> Iterator[memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), _STEP_BYTES):
            yield memoryview(piece)[start : start + _STEP_BYTES]


def _split(state: bytearray, take: Callable[[_Pairs], None]) -> dict[str, Any]:
    """Hand over the rows of a state one by one, however it is laid out; return what is around them."""
    start = _TRIALS.search(state)
    if start is None:
        raise MalformedStateError("not a whole experiment state (it has no trial_data)")
    view, end = memoryview(state), start.end()
    while row := _ROW.match(state, end):
        take([(msgspec.Raw(view[slice(*row.span(1))]), msgspec.Raw(view[slice(*row.span(2))]))])
        end = row.end()
        if not row[3]:
            break
    if _TRIALS_END.match(state, end) is None:
        raise MalformedStateError(_NO_PAIR)
    return _read_frame(view[: start.end()], view[end:])


def _read_frame(before: memoryview, after: memoryview) -> dict[str, Any]:
    """Read what stands before and after the rows."""
    try:
        bounded_json.check_size(len(before) + len(after))
        around = bounded_json.load(bytes(before) + bytes(after), most_values=MAX_FRAME_VALUES)
    except (ValueError, RecursionError) as error:
        reason = f"not a whole experiment state (around its rows: {error})"
        raise MalformedStateError(reason) from error
    if not isinstance(around, dict) or around.pop("trial_data", None) != []:
        raise MalformedStateError("not a whole experiment state (its trial_data is not its own)")
    return around


def _is_text(raw: msgspec.Raw) -> bool:
    return memoryview(raw)[0] == _QUOTE


def _read_row(trial: msgspec.Raw, metadata: msgspec.Raw, others: Collection[str]) -> Trial:
    """Read one row; one that cannot be read stands there as a trial that nothing can be done with."""
    try:
        found = _parse_row(trial, metadata)
        if found.trial_id in others:
            raise MalformedStateError(f"another trial has the id {found.trial_id!r}, too")
    except MalformedStateError as error:
        # not the id that we go by: a later row that can be read may have the same
        named = _field(trial, "trial_id")
        is_known = isinstance(named, str) and is_safe_name(named)
        return Trial(
            trial_id=f"{_UNREADABLE}{len(others) + 1}",
            trainable_name="",
            status=TrialStatus.ERROR,
            trial_dir=None,
            unusable=f"{error}; its trial_id is {named}" if is_known else str(error),
        )
    return found


def _parse_row(trial: msgspec.Raw, metadata: msgspec.Raw) -> Trial:
    head = _decode(trial, _HEAD)
    trial_id = head.trial_id
    is_reserved = trial_id == layout.WHOLE_EXPERIMENT or trial_id.startswith(_UNREADABLE)
    if is_reserved or not is_key_name(trial_id):
        raise MalformedStateError(f"trial id {trial_id[:80]!r} cannot be used")
    try:
        run, odd = _decode_metadata(metadata), []
    except MalformedStateError:
        run, odd = _RunMetadata(), ["metadata"]
    # unfinished is what is neither TERMINATED nor ERROR (TuneController._requeue_restored_trials, 2.60)
    status = _STATUSES.get(head.status) if isinstance(head.status, str) else None
    if status is None:
        status = TrialStatus.PENDING
        odd.append("status")
    last = run.last_result or _Iteration()
    if read_iteration(last.training_iteration) is None:
        odd.append("training_iteration")
    reported_at, started_at = _seconds(run.last_result_time), _seconds(run.start_time)
    seconds = last.time_this_iter_s
    directory, name = head.relative_logdir, head.trainable_name
    return Trial(
        trial_id=trial_id,
        trainable_name=name if _is_name(name) else "",
        status=status,
        trial_dir=directory if _is_directory(directory) else None,
        iteration=whole_iteration(last.training_iteration),
        last_result_time=-math.inf if reported_at is None else reported_at,
        start_time=started_at,
        last_interval=float(seconds) if is_amount(seconds) else 0.0,
        end=_read_end(head, last, metadata),
        unusable=_why_unusable(head),
        odd_fields=tuple(odd),
    )


def _why_unusable(head: _RowHead) -> str:
    """Return why a trial cannot be run, although its row can be read; "" if it can."""
    if head.relative_logdir is not None and not _is_directory(head.relative_logdir):
        return f"its directory {_shown(head.relative_logdir)} leads outside or is not a name"
    if not _is_name(head.trainable_name):
        return f"the name of its trainable, {_shown(head.trainable_name)}, cannot be used"
    return ""


def _is_directory(value: Any) -> bool:
    return isinstance(value, str) and is_segment(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and is_trainable_name(value)


def _shown(value: Any) -> str:
    return (
        repr(printable(value, 80)) if isinstance(value, str) else f"of type {type(value).__name__}"
    )


def _seconds(value: Any) -> float | None:
    return float(value) if is_amount(value) else None


def _read_end(head: _RowHead, last: _Iteration, metadata: msgspec.Raw) -> TrialEnd | None:
    """Tell by what a TERMINATED trial came to its end, as far as its row shows."""
    if head.status != TrialStatus.TERMINATED:
        return None
    if last.done is not True:
        return TrialEnd.OUTSIDE
    if _meets(head.stopping_criterion, metadata):
        return TrialEnd.CRITERION
    if not _is_last_result_done(metadata):
        return TrialEnd.ITSELF
    # every result of a function has it (ray.train._internal.session._TrainSession.report, 2.60)
    is_function = last.checkpoint_dir_name is not msgspec.UNSET
    return TrialEnd.RESULT if is_function else TrialEnd.DONE


def _meets(criterion: Any, metadata: msgspec.Raw) -> bool:
    """Whether the last result meets one of the `stop` criteria (Trial.should_stop, 2.60)."""
    if not isinstance(criterion, dict) or not criterion:
        return False
    try:
        result = _decode(metadata, _LAST).last_result
    except MalformedStateError:
        return False
    met = ((follow_metric(result, name), limit) for name, limit in criterion.items())
    return any(
        {type(value), type(limit)} <= {int, float} and value >= limit for value, limit in met
    )


def _is_last_result_done(metadata: msgspec.Raw) -> bool:
    """Whether the last result that was logged says `done`.

    Ray analyses each logged result (`Trial.update_last_result`, 2.60), and says `done` in one that a
    scheduler, a stopper or the trainable itself made the last. A function that returns has logged all
    its results before, and is called done afterwards.
    """
    text = bytes(memoryview(metadata)[: bounded_json.MAX_DOCUMENT_BYTES])
    start = text.find(_DONE)
    return start >= 0 and _LAST_IS_TRUE in text[start : start + _DONE_BYTES]


def _decode_metadata(raw: msgspec.Raw) -> _RunMetadata:
    """Decode what stands in front of the part no plan needs, or all of it where there is none."""
    view = memoryview(raw)
    text = bytes(view[:_BRIEF_BYTES])
    end = text.find(_REST_OF_METADATA)
    if end < 0 or view[-len(_END) :] != _END:
        return _decode(raw, _RUN)
    return _decode(text[:end] + _END, _RUN)


def _decode(raw: msgspec.Raw | bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """Decode an inner document into the fields we need."""
    try:
        return decode_document(_text_of(raw), decoder)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedStateError(f"a row cannot be read ({error})") from error


def _text_of(raw: msgspec.Raw | bytes) -> str:
    """Return an inner document; ValueError if it is none, or too large."""
    bounded_json.check_size(len(memoryview(raw)))
    return _TEXT.decode(raw)


def decode_document(text: str | bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """Decode a document that may hold NaN and infinities into the fields we need.

    Raises:
        msgspec.DecodeError, ValueError: If it is something else, or too large; RecursionError if it nests
            too deeply.
    """
    bounded_json.check_values(text)
    try:
        return decoder.decode(text)
    except msgspec.DecodeError:
        # NaN and infinities; `convert` checks the types again
        return msgspec.convert(bounded_json.load(text, parse_constant=_constant), decoder.type)


def _constant(text: str) -> float | None:
    """`-Infinity` stands for "never reported", NaN for "no number"."""
    return None if text == "NaN" else float(text)


def _field(raw: msgspec.Raw, name: str) -> Any:
    """Return one field of an inner document; None if it cannot be read: these are only shown."""
    try:
        document = bounded_json.load(_text_of(raw))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return document.get(name) if isinstance(document, dict) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@lru_cache(maxsize=16)
def _sum_bundles(hex_of_factory: str) -> tuple[tuple[str, float], ...]:
    """Sum up what a factory asks for; the trials of an experiment mostly have the same one."""
    bundles = attribute(_read_hex(hex_of_factory), "_bundles")
    total: dict[str, float] = {}
    # many references to one large bundle are small in the file
    for name, amount in islice(_bundle_items(bundles), _MAX_BUNDLES):
        if isinstance(name, str) and is_resource(name, amount):
            total[name] = min(total.get(name, 0.0) + float(amount), sys.float_info.max)
    return tuple(total.items()) if len(total) <= _MAX_RESOURCES else ()


def _hex_of_pickle(value: Any) -> str | None:
    """Return a field that Ray wrote as hex of a pickle, bare or wrapped; None if it is none."""
    if isinstance(value, dict) and value.get("_type") == "CLOUDPICKLE_FALLBACK":
        value = value.get("value")
    return value if isinstance(value, str) else None


def read_hex_pickle(value: Any) -> Any:
    """Read a field that Ray wrote as hex of a pickle; None if it is not one, or cannot be read."""
    text = _hex_of_pickle(value)
    return None if text is None else _read_hex(text)


def _read_hex(text: str) -> Any:
    """Read a pickle in hex; None if it cannot be read."""
    try:
        return read_pickle(bytes.fromhex(text))
    except (SymbolicError, ValueError):
        return None


def _bundle_items(bundles: Any) -> Iterator[tuple[Any, Any]]:
    for bundle in islice(bundles, _MAX_BUNDLES) if isinstance(bundles, list) else ():
        if isinstance(bundle, Mapping):
            yield from bundle.pairs
