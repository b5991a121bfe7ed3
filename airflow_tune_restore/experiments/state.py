"""Experiment state JSON -> rows.

The file is JSON inside JSON strings, about 13 KB a trial, and holds `NaN`, `Infinity` and `-Infinity`,
which strict parsers refuse. So the frame (`trial_data`) is split into raw row slices by msgspec without
copying, and each row's two inner documents are decoded into just the fields a plan needs; a document
that holds a non-finite number falls back to the stdlib parser, string by string.
The raw slices stay, so that a commit can put untouched rows back byte for byte.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from airflow_tune_restore.experiments.layout import EVERY_TRIAL
from airflow_tune_restore.experiments.symbolic import Mapping, SymbolicError, attribute, read_pickle
from airflow_tune_restore.experiments.trial import RecordedCheckpoint, Trial, TrialStatus

MAX_STATE_BYTES = 512 * 1024 * 1024
"""Four times an experiment of 10,000 trials; larger files are refused unread."""

_TRIALS_START = b'{"trial_data": '
_TRIALS_END = b', "runner_data": '

T = TypeVar("T")


class MalformedStateError(ValueError):
    """A state file that cannot be used; the text says why."""


class _RowHead(msgspec.Struct):
    trial_id: str
    status: TrialStatus
    trainable_name: str = ""
    experiment_tag: str = ""
    relative_logdir: str | None = None
    max_failures: int = 0


class _Iteration(msgspec.Struct):
    training_iteration: int = 0


class _RunMetadata(msgspec.Struct):
    num_failures: int = 0
    error_filename: str | None = None
    last_result: _Iteration = msgspec.field(default_factory=_Iteration)
    last_result_time: float | None = None
    start_time: float | None = None


class _Resources(msgspec.Struct):
    placement_group_factory: Any = None


class _Checkpoints(msgspec.Struct):
    checkpoint_manager: Any = None


@dataclass(frozen=True, slots=True)
class RawRow:
    """One `[trial_json, metadata_json]` pair as it stands in the file, quotes and all."""

    trial: msgspec.Raw
    metadata: msgspec.Raw

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
        """Sum the bundles of the placement group factory (ray.tune.execution, 2.60)."""
        pickled = _decode(self.trial, _Resources).placement_group_factory
        bundles = attribute(_pickled(pickled), "_bundles")
        total: dict[str, float] = {}
        for bundle in bundles if isinstance(bundles, list) else []:
            for name, amount in bundle.pairs if isinstance(bundle, Mapping) else []:
                if isinstance(name, str) and isinstance(amount, int | float):
                    total[name] = total.get(name, 0.0) + float(amount)
        return total

    def recorded_checkpoint(self) -> RecordedCheckpoint | None:
        """Read the latest registered checkpoint (ray.train._internal.checkpoint_manager, 2.60)."""
        pickled = _decode(self.metadata, _Checkpoints).checkpoint_manager
        latest = attribute(_pickled(pickled), "_latest_checkpoint_result")
        path = attribute(latest, "checkpoint", "path")
        if not isinstance(path, str):
            return None
        iteration = attribute(latest, "metrics", "training_iteration")
        name = path.rstrip("/").rpartition("/")[2]
        if not is_safe_name(name):
            return None
        return RecordedCheckpoint(
            name=name, iteration=iteration if isinstance(iteration, int) else 0
        )


@dataclass(frozen=True, slots=True)
class State:
    """A parsed state file: its rows, and the rest of the frame as plain values."""

    trials: tuple[Trial, ...]
    rows: tuple[RawRow, ...]
    runner: dict[str, Any]
    stats: dict[str, Any]

    @property
    def start_time(self) -> float:
        """Unix seconds at which the driver session that wrote it started; what orders states."""
        value = self.stats.get("start_time")
        return float(value) if isinstance(value, int | float) else -math.inf


NO_STATE = State((), (), {}, {})
"""Of an experiment whose driver died before it saved one."""


def parse_state(body: bytes) -> State:
    """Parse a state file.

    Raises:
        MalformedStateError: If it is truncated, no experiment state, or names something unsafe.
    """
    rows, rest = _split(body)
    trials = tuple(_parse_row(row) for row in rows)
    seen: set[str] = set()
    for trial in trials:
        if trial.trial_id in seen:
            raise MalformedStateError(f"two trials have the id {trial.trial_id!r}")
        seen.add(trial.trial_id)
    return State(trials, rows, _dict(rest.get("runner_data")), _dict(rest.get("stats")))


def encode_state(rows: Sequence[RawRow], runner: dict[str, Any], stats: dict[str, Any]) -> bytes:
    """Put a state file together; rows go in byte for byte as they were read."""
    body = b", ".join(b"[" + bytes(row.trial) + b", " + bytes(row.metadata) + b"]" for row in rows)
    tail = json.dumps({"runner_data": runner, "stats": stats}).encode()
    return _TRIALS_START + b"[" + body + b"], " + tail[1:]


def is_safe_name(name: str) -> bool:
    """Whether a name from a state file is one path segment that stays where it is put."""
    return (
        name not in ("", ".", "..")
        and not any(character in name for character in "/\\")
        and name.isprintable()
    )


def _split(body: bytes) -> tuple[tuple[RawRow, ...], dict[str, Any]]:
    """Split the frame. Ray writes `trial_data` first; anything else takes the slow, general way."""
    end = body.rfind(_TRIALS_END)
    try:
        if body.startswith(_TRIALS_START) and end > 0:
            # a quote inside a row is escaped, so a bare `, "runner_data": ` stands behind all rows
            frame = memoryview(body)[len(_TRIALS_START) : end]
            pairs = msgspec.json.decode(frame, type=list[tuple[msgspec.Raw, msgspec.Raw]])
            rest = json.loads(b"{" + body[end + 2 :])
        else:
            rest = json.loads(body)
            pairs = [
                (msgspec.Raw(json.dumps(trial).encode()), msgspec.Raw(json.dumps(meta).encode()))
                for trial, meta in rest.pop("trial_data")
            ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedStateError(f"not a whole experiment state ({error})") from error
    return tuple(RawRow(trial, metadata) for trial, metadata in pairs), _dict(rest)


def _parse_row(row: RawRow) -> Trial:
    head = _decode(row.trial, _RowHead)
    run = _decode(row.metadata, _RunMetadata)
    for label, name in (("trial id", head.trial_id), ("trial directory", head.relative_logdir)):
        if name is not None and (not is_safe_name(name) or name == EVERY_TRIAL):
            raise MalformedStateError(f"{label} {name!r} leads outside or cannot be a name")
    return Trial(
        trial_id=head.trial_id,
        trainable_name=head.trainable_name,
        status=head.status,
        trial_dir=head.relative_logdir,
        experiment_tag=head.experiment_tag,
        max_failures=head.max_failures,
        num_failures=run.num_failures,
        error_file=run.error_filename,
        iteration=run.last_result.training_iteration,
        last_result_time=-math.inf if run.last_result_time is None else run.last_result_time,
        start_time=run.start_time,
        details=row,
    )


def _decode(raw: msgspec.Raw, kind: type[T]) -> T:
    """Decode an inner document into the fields we need."""
    try:
        text = msgspec.json.decode(raw, type=str)
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError:
            # NaN and infinities; `convert` checks the types again
            return msgspec.convert(json.loads(text, parse_constant=_constant), kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise MalformedStateError(f"a row cannot be read ({error})") from error


def _constant(text: str) -> float | None:
    """`-Infinity` stands for "never reported", NaN for "no number"."""
    return None if text == "NaN" else float(text)


def _field(raw: msgspec.Raw, name: str) -> Any:
    """Return one field of an inner document."""
    document = json.loads(msgspec.json.decode(raw, type=str))
    return document.get(name) if isinstance(document, dict) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _pickled(value: Any) -> Any:
    """Read a field that Ray wrote as hex of a pickle, bare or wrapped; None if unreadable."""
    if isinstance(value, dict) and value.get("_type") == "CLOUDPICKLE_FALLBACK":
        value = value.get("value")
    try:
        return read_pickle(bytes.fromhex(value)) if isinstance(value, str) else None
    except (SymbolicError, ValueError):
        return None
