"""Records read back from storage: each field is checked down to its last item, and made fit to be shown.

What names something (a trial, a directory) is refused if it cannot be a name: altered it would name
something else. What is only shown is made one printable line of limited length when it is read, so that
no log, table or XCom has to. Standard library only: runners read records, too.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.names import is_resource, is_safe_name, is_segment
from airflow_tune_restore.protocol.numbers import MAX_COUNT, is_count, strict_json
from airflow_tune_restore.protocol.printable import printable

WORD_LENGTH = 40
"""Characters of a version, or of the one word for a cause."""

LINE_LENGTH = 200
"""Characters kept of a type, a message or a place."""

ERROR_LENGTH = 2000
"""Characters of an error's message, its beginning: what was raised stands there."""

LAST_WORDS_LENGTH = 4000
"""Characters of what a runner said last, the end of it: what it died of stands there."""

MOST_METRICS = 40
"""Of one result. A runner writes twenty, and the experiment's own."""

STATUSES = frozenset({"PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"})
"""Ray's (`TrialStatus` needs msgspec; runners have none)."""


def _must_be(test: Callable[[Any], bool], what: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(f"it is no {what}")
        return value

    return check


def at_most(number: int) -> Callable[[Any], Any]:
    """Return what refuses a longer list."""
    return _must_be(lambda items: len(items) <= number, f"list of at most {number}")


def _word(text: str) -> str:
    return printable(text, WORD_LENGTH)


def _line(text: str) -> str:
    return printable(text, LINE_LENGTH)


def _error(text: str) -> str:
    return printable(text, ERROR_LENGTH)


def _last_words(text: str) -> str:
    lines = text[-LAST_WORDS_LENGTH:].splitlines()
    return "\n".join(printable(line, LAST_WORDS_LENGTH) for line in lines)


def _status(text: str) -> str:
    return text if text in STATUSES else ""


def _moment(text: str) -> str:
    """Return a time as we write it; "" for what is none."""
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return ""


def _is_metric(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max  # JSON may hold 10**4000
    return value is None or isinstance(value, str | float)


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep scalars, as many of them and as much of each as can be shown."""
    scalars = [(name, value) for name, value in values.items() if _is_metric(value)]
    return {
        _line(name): _line(value) if isinstance(value, str) else value
        for name, value in scalars[:MOST_METRICS]
    }


def _are_resources(values: Mapping[str, Any]) -> bool:
    return all(is_resource(name, value) for name, value in values.items())


def _resources(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep what something can be sized by."""
    return {
        name: float(value)
        for name, value in values.items()
        if is_resource(name, value) and value > 0
    }


Count = Annotated[int, _must_be(is_count, "count")]
Name = Annotated[str, _must_be(is_safe_name, "name")]
Segment = Annotated[str, _must_be(is_segment, "name of a directory")]
Word = Annotated[str, _word]
Line = Annotated[str, _line]
Error = Annotated[str, _error]
LastWords = Annotated[str, _last_words]
Status = Annotated[str, _status]
Moment = Annotated[str, _moment]
Metrics = Annotated[dict[str, Any], _metrics]
Asked = Annotated[dict[str, float], _must_be(_are_resources, "amounts of resources")]
Resources = Annotated[dict[str, Any], _resources]


class Record:
    """JSON in and out for dataclasses. Unknown fields are ignored: a newer version has added them."""

    def to_json(self) -> bytes:
        """Encode; numbers that JSON does not know become strings."""
        return json.dumps(strict_json(asdict(self))).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, body: bytes | str) -> Self:
        """Read what a record was written as, by this version or another one.

        Raises:
            ValueError: If it is something else; TypeError if a field is missing.
        """
        with bounded_json.alone(len(body)):
            return cls.read(_readable(bounded_json.load(body)))

    @classmethod
    def read(cls, given: Any) -> Self:
        """Read a record from its plain values; raises as `from_json`."""
        if not isinstance(given, dict):
            raise ValueError(f"a {cls.__name__} cannot be a {type(given).__name__}")  # noqa: TRY004  one kind for all
        values: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name in given:
                try:
                    values[field.name] = _read(given[field.name], field.type)
                except ValueError as error:
                    raise ValueError(f"{field.name} of a {cls.__name__}: {error}") from error
        return cls(**values)


def _read(value: Any, kind: Any) -> Any:
    """Return a value as a field of an annotated type keeps it; ValueError if it cannot be one."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        value = _read(value, arguments[0])
        for keep in arguments[1:]:
            value = keep(value)
        return value
    if origin in (Union, UnionType):  # of something and None
        (known,) = (one for one in arguments if one is not NoneType)
        return None if value is None else _read(value, known)
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.read(value)
    if not _fits(value, origin or kind):
        raise ValueError(f"it cannot be a {type(value).__name__}")
    if origin is list:
        return [_read(item, arguments[0]) for item in value]
    if origin is dict:
        return {name: _read(item, arguments[1]) for name, item in value.items()}
    return value


def _fits(value: Any, kind: type) -> bool:
    """Whether a value is of a plain type; numbers are such as JSON and floats can hold."""
    if kind is int:
        return type(value) is int and abs(value) <= MAX_COUNT
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind


def _readable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can spell and nothing can encode."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value
