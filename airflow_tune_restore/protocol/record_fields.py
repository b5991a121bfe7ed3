"""The fields of records read from storage: each is checked down to its last item.

A text that names something (a trial, a directory) is refused if it cannot be a name: a changed one would
name something else. A text that is only shown becomes one printable line of limited length, so that logs,
tables and XComs can show it as it is. Standard library only.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.names import is_resource, is_safe_name, is_segment
from airflow_tune_restore.protocol.numbers import MAX_COUNT, is_count, strict_json
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable

WORD_LENGTH = 40
"""Characters of a version or of a cause."""

LINE_LENGTH = 200
"""Characters kept of a type, a message or a place."""

ERROR_LENGTH = 2000
"""Characters from the beginning of an error's message: it starts with what was raised."""

LAST_WORDS_LENGTH = 4000
"""Characters from the end of a runner's last output: it ends with the reason of its death."""

OUTPUT_LENGTH = 1000
"""Characters kept of a line that a trial prints."""

MOST_METRICS = 40
"""Metrics of one result. A runner writes twenty, and the metric of the experiment."""

STATUSES = frozenset({"PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"})
"""Ray's statuses of a trial (`TrialStatus` needs msgspec, which Ray images lack)."""


def must_be(test: Callable[[Any], bool], what: str) -> Callable[[Any], Any]:
    """Return a check that refuses values that fail the test (ValueError)."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(f"it is not {what}")
        return value

    return check


def at_most(number: int) -> Callable[[Any], Any]:
    """Return a check that refuses a longer list."""
    return must_be(lambda items: len(items) <= number, f"a list of at most {number} items")


def _at_length(most: int) -> Callable[[str], str]:
    return lambda text: printable(text, most)


def _last_words(text: str) -> str:
    lines = text[-LAST_WORDS_LENGTH:].splitlines()
    return "\n".join(printable(line, LAST_WORDS_LENGTH) for line in lines)


def _status(text: str) -> str:
    return text if text in STATUSES else ""


def _moment(text: str) -> str:
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return ""


def _is_metric(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max  # JSON may hold 10**4000
    return value is None or isinstance(value, str | float)


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep scalars, of limited number and length."""
    scalars = [(name, value) for name, value in values.items() if _is_metric(value)]
    return {
        printable(name, LINE_LENGTH): printable(value, LINE_LENGTH)
        if isinstance(value, str)
        else value
        for name, value in scalars[:MOST_METRICS]
    }


def _are_resources(values: Mapping[str, Any]) -> bool:
    return all(is_resource(name, value) for name, value in values.items())


def _resources(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep the resources with valid amounts above 0."""
    valid = {name: value for name, value in values.items() if is_resource(name, value)}
    return {name: float(value) for name, value in valid.items() if value > 0}


Count = Annotated[int, must_be(is_count, "a count")]
Name = Annotated[str, must_be(is_safe_name, "a valid name")]
StateName = Annotated[str, must_be(lambda name: not name or is_safe_name(name), "a file name")]
Segment = Annotated[str, must_be(is_segment, "a valid name of a directory")]
Word = Annotated[str, _at_length(WORD_LENGTH)]
Line = Annotated[str, _at_length(LINE_LENGTH)]
Output = Annotated[str, _at_length(OUTPUT_LENGTH)]
Error = Annotated[str, _at_length(ERROR_LENGTH)]
Note = Annotated[str, _at_length(NOTE_LENGTH)]
LastWords = Annotated[str, _last_words]
Status = Annotated[str, _status]
Moment = Annotated[str, _moment]
Metrics = Annotated[dict[str, Any], _metrics]
Asked = Annotated[dict[str, float], must_be(_are_resources, "a dict of resource amounts")]
Resources = Annotated[dict[str, Any], _resources]


class Record:
    """JSON in and out for dataclasses. Unknown fields, of a newer version, are ignored."""

    def to_json(self) -> bytes:
        """Encode; numbers that JSON does not have become strings."""
        return json.dumps(strict_json(asdict(self))).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, body: bytes | str) -> Self:
        """Read a record that this or another version wrote.

        Raises:
            ValueError: If it is not such a record; TypeError if a field is missing.
        """
        with bounded_json.alone(len(body)):
            return cls.read(_readable(bounded_json.load(body)))

    @classmethod
    def read(cls, given: Any) -> Self:
        """Read a record from plain values; raises as `from_json` does."""
        if not isinstance(given, dict):
            raise ValueError(f"a {cls.__name__} cannot be a {type(given).__name__}")  # noqa: TRY004  one type for all
        values: dict[str, Any] = {}
        for name, read in _readers(cls):  # type: ignore[arg-type]  # it has a hash
            if name in given:
                try:
                    values[name] = read(given[name])
                except ValueError as error:
                    raise ValueError(f"{name} of a {cls.__name__}: {error}") from error
        return cls(**values)


@cache
def _readers(record: type[Record]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Return the names of the fields of a record, each with its reader."""
    return tuple((field.name, _reader(field.type)) for field in fields(record))  # type: ignore[arg-type]


def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return a function: a value -> as a field of this type holds it; ValueError if it does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin is Annotated:
        return _in_turn([_reader(arguments[0]), *arguments[1:]])
    if origin in (Union, UnionType):  # a type or None
        (known,) = (_reader(one) for one in arguments if one is not NoneType)
        return lambda value: None if value is None else known(value)
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.read
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return partial(_read_word, kind=kind)
    fitting = partial(_fitting, kind=origin or kind)
    if origin is list:
        item = _reader(arguments[0])
        return lambda value: [item(one) for one in fitting(value)]
    if origin is dict:
        item = _reader(arguments[1])
        return lambda value: {name: item(one) for name, one in fitting(value).items()}
    return fitting


def _in_turn(steps: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return read


def _read_word(value: Any, kind: type[StrEnum]) -> StrEnum:
    if value not in list(kind):
        raise ValueError(f"{str(value)[:WORD_LENGTH]!r} is not one of {', '.join(kind)}")
    return kind(value)


def _fitting(value: Any, kind: type) -> Any:
    """Return a value; refuse one that is not of a plain type. Numbers must fit into JSON and floats."""
    if kind is int:
        fits = type(value) is int and abs(value) <= MAX_COUNT
    elif kind is float:
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(f"it cannot be a {type(value).__name__}")
    return value


def _readable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can hold and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value
