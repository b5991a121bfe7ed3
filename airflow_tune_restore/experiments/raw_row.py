"""One row of a state file as it stands there, and the fields that are read from it on demand."""

import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.checkpoints import RecordedCheckpoint
from airflow_tune_restore.protocol.names import is_resource, is_segment
from airflow_tune_restore.protocol.numbers import whole_iteration
from airflow_tune_restore.protocol.pickle_fields import PickleFields
from airflow_tune_restore.protocol.pickle_reader import (
    Mapping,
    SymbolicError,
    attribute,
    read_pickle,
)

_MAX_BUNDLES = 10_000
_MAX_FACTORY_CHARACTERS = 1024 * 1024
_REST_OF_METADATA = b',\\n  \\"metric_analysis\\": '
"""Nine tenths of a row come after this, at this depth (Ray 2.40 to 2.60), and no plan needs them."""

_END = b'\\n}"'

_BRIEF_BYTES = 8192
"""How far to look for it; what is in front of it holds one result, with the tag of its trial."""

_MAX_RESOURCES = 100
"""Names in the resources of one trial; real ones have about five."""

_FASTEST = 1
"""Level of the compression of rows in memory."""

T = TypeVar("T")


class MalformedStateError(TuneRestoreError):
    """A state file that cannot be used; the text gives the reason."""


class _Resources(msgspec.Struct):
    placement_group_factory: Any = None


class _Checkpoints(msgspec.Struct):
    checkpoint_manager: Any = None


class _Config(msgspec.Struct):
    config: Any = None
    evaluated_params: Any = None


_TEXT = msgspec.json.Decoder(str)
_CONFIG = msgspec.json.Decoder(_Config)
_RESOURCES = msgspec.json.Decoder(_Resources)
_CHECKPOINTS = msgspec.json.Decoder(_Checkpoints)


@dataclass(frozen=True, slots=True)
class RawRow:
    """One `[trial_json, metadata_json]` pair as it stands in the file, with its quotes."""

    trial: msgspec.Raw
    metadata: msgspec.Raw

    @property
    def is_readable(self) -> bool:
        """Whether it is small enough to be read again."""
        limit = bounded_json.MAX_DOCUMENT_BYTES
        return max(memoryview(self.trial).nbytes, memoryview(self.metadata).nbytes) <= limit

    def mark(self) -> int:
        """Return a number that changes with its content."""
        return zlib.crc32(self.metadata, zlib.crc32(self.trial))

    def last_result(self) -> dict[str, Any]:
        """Return the last result; empty if there is none."""
        result = read_field(brief_metadata(self.metadata), "last_result")
        return result if isinstance(result, dict) else {}

    def stopping_criterion(self) -> Any:
        """Return what `stop` gave the trial (ray.tune.experiment.trial, 2.60); None if unreadable."""
        return read_field(self.trial, "stopping_criterion")

    def config(self) -> tuple[dict[str, Any], list[str]]:
        """Return the config, and the flat names that the search has chosen; empty if unreadable."""
        try:
            text = _text_of(self.trial)
            bounded_json.check_values(text)
            found = _CONFIG.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError):  # NaN and infinities, or worse
            names = ("config", "evaluated_params")
            found = _Config(*(read_field(self.trial, name) for name in names))
        config, chosen = found.config, found.evaluated_params
        return (
            config if isinstance(config, dict) else {},
            list(chosen) if isinstance(chosen, dict) else [],
        )

    def resources(self) -> dict[str, float]:
        """Sum the bundles of the placement group factory (ray.tune.execution, 2.60); {} if unreadable."""
        try:
            pickled = decode_text(self.trial, _RESOURCES).placement_group_factory
        except MalformedStateError:  # a number of 5,000 digits
            return {}
        hex_of = hex_of_pickle(pickled) or ""
        return dict(_sum_bundles(hex_of) if len(hex_of) <= _MAX_FACTORY_CHARACTERS else ())

    def recorded_checkpoint(self, fields: PickleFields) -> RecordedCheckpoint | None:
        """Read the latest registered checkpoint (ray.train._internal.checkpoint_manager, 2.60).

        `fields` is `checkpoint_fields()`, the same for all rows of an experiment.

        Raises:
            MalformedStateError: If there is a record that cannot be read. That differs from no record.
        """
        pickled = decode_text(self.metadata, _CHECKPOINTS).checkpoint_manager
        if pickled is None:
            return None
        try:
            path, iteration = fields.read(bytes.fromhex(hex_of_pickle(pickled) or ""))
        except (SymbolicError, ValueError) as error:
            raise MalformedStateError("the record of its checkpoints cannot be read") from error
        if path is None:
            return None
        name = path.rstrip("/").rpartition("/")[2] if isinstance(path, str) else ""
        if not is_segment(name):
            raise MalformedStateError("the path of its checkpoint leads outside or is not a path")
        return RecordedCheckpoint(name=name, iteration=whole_iteration(iteration))


def checkpoint_fields() -> PickleFields:
    """Return what reads the path and the iteration of the latest checkpoint from its record."""
    latest = "_latest_checkpoint_result"
    return PickleFields((latest, "checkpoint", "path"), (latest, "metrics", "training_iteration"))


class PackedRow(NamedTuple):
    """A raw row in a fifth of its size: all rows of a large experiment fit beside a file of them.

    Args:
        data: Both documents, compressed.
        split: Bytes of the first one.
    """

    data: bytes
    split: int

    @classmethod
    def of(cls, row: RawRow) -> "PackedRow":
        """Pack a row."""
        trial = bytes(memoryview(row.trial))
        return cls(zlib.compress(trial + memoryview(row.metadata), _FASTEST), len(trial))

    def unpack(self) -> RawRow:
        """Return the row, byte for byte."""
        data = memoryview(zlib.decompress(self.data))
        return RawRow(msgspec.Raw(data[: self.split]), msgspec.Raw(data[self.split :]))


def brief_metadata(raw: msgspec.Raw) -> msgspec.Raw | bytes:
    """Return the metadata without the part that no plan needs; all of it where that part is missing."""
    view = memoryview(raw)
    text = bytes(view[:_BRIEF_BYTES])
    end = text.find(_REST_OF_METADATA)
    return raw if end < 0 or view[-len(_END) :] != _END else text[:end] + _END


def read_field(raw: msgspec.Raw | bytes, name: str) -> Any:
    """Return one field of an inner document; None if it cannot be read. Used for display only."""
    try:
        document = bounded_json.load(_text_of(raw))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return document.get(name) if isinstance(document, dict) else None


def decode_text(raw: msgspec.Raw | bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """Decode an inner document, a JSON string that holds JSON, into the fields that are needed.

    Raises:
        MalformedStateError: If it cannot be decoded.
    """
    try:
        text = _text_of(raw)
        bounded_json.check_values(text)
        try:
            return decoder.decode(text)
        except msgspec.DecodeError:
            # NaN and infinities; `convert` checks the types again
            return msgspec.convert(bounded_json.load(text, parse_constant=_constant), decoder.type)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedStateError(f"a row cannot be read ({error})") from error


def read_hex_pickle(value: Any) -> Any:
    """Read a field that Ray wrote as hex of a pickle; None if it is something else, or unreadable."""
    text = hex_of_pickle(value)
    return None if text is None else _read_hex(text)


def _text_of(raw: msgspec.Raw | bytes) -> str:
    """Return an inner document; ValueError if it is not a text, or too large."""
    bounded_json.check_size(len(memoryview(raw)))
    return _TEXT.decode(raw)


def _constant(text: str) -> float | None:
    """`-Infinity` stands for "never reported", NaN for "not a number"."""
    return None if text == "NaN" else float(text)


@lru_cache(maxsize=16)
def _sum_bundles(hex_of_factory: str) -> tuple[tuple[str, float], ...]:
    """Sum up the resources of a factory; the trials of an experiment mostly share one."""
    bundles = attribute(_read_hex(hex_of_factory), "_bundles")
    total: dict[str, float] = {}
    # many references to one large bundle are small in the file
    for name, amount in islice(_bundle_items(bundles), _MAX_BUNDLES):
        if isinstance(name, str) and is_resource(name, amount):
            total[name] = min(total.get(name, 0.0) + float(amount), sys.float_info.max)
    return tuple(total.items()) if len(total) <= _MAX_RESOURCES else ()


def _bundle_items(bundles: Any) -> Iterator[tuple[Any, Any]]:
    for bundle in islice(bundles, _MAX_BUNDLES) if isinstance(bundles, list) else ():
        if isinstance(bundle, Mapping):
            yield from bundle.pairs


def hex_of_pickle(value: Any) -> str | None:
    """Return the hex of a pickle that Ray wrote, bare or wrapped; None if it is something else."""
    if isinstance(value, dict) and value.get("_type") == "CLOUDPICKLE_FALLBACK":
        value = value.get("value")
    return value if isinstance(value, str) else None


def _read_hex(text: str) -> Any:
    """Read a pickle in hex; None if it cannot be read."""
    try:
        return read_pickle(bytes.fromhex(text))
    except (SymbolicError, ValueError):
        return None
