"""Parses operator arguments: literals when the DAG is parsed (`hooks.literals`), all when the task runs.

Then a template is text: `{{ params.x }}` renders to a string.
"""

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import time, timedelta
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.protocol import lease, window
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.only import WORDS, Only
from airflow_tune_restore.storage.location import Location

RESUME_FLAGS = ("resume_unfinished", "resume_errored", "restart_errored", "resume_cut_short")
"""The arguments of `ResumeFlags.from_flags`."""

SWITCHES = tuple(field.name for field in fields(PlanChoices) if field.type is bool)
"""The choices that are true or false: arguments of the same names."""

MIN_LEASE_TTL = timedelta(seconds=3 * lease.RENEW_SECONDS)
"""Shortest `lease_ttl`: two renewals may be late."""

_BETWEEN_IDS = re.compile(r"[,\n]")
SKIP_UNKNOWN, _FAIL_UNKNOWN = "skip", "fail"
"""The values of `on_unknown`: an experiment that no trainable is given for is listed, or refused."""

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off", "none", ""})


def parse_bool(name: str, value: Any) -> bool:
    """Parse a flag."""
    if isinstance(value, bool) or value is None:
        return bool(value)
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidInputError(f"{name}={value!r} is neither true nor false.")


def parse_span(name: str, value: Any) -> timedelta:
    """Parse a duration: a timedelta, or seconds."""
    if isinstance(value, timedelta):
        span = value
    else:
        try:
            span = timedelta(seconds=float(value))
        except (TypeError, ValueError, OverflowError):
            raise InvalidInputError(f"{name}={value!r} is not a number of seconds.") from None
    if span < timedelta():
        raise InvalidInputError(f"{name}={value!r} is less than zero.")
    return span


def parse_lease_ttl(name: str, value: Any) -> timedelta:
    """Parse how long a lease lasts without a renewal: a timedelta, or seconds."""
    span = parse_span(name, value)
    if span < MIN_LEASE_TTL:
        raise InvalidInputError(
            f"{name}={value!r} is less than {MIN_LEASE_TTL.total_seconds():.0f} s: a restore that lives "
            f"renews its lease only every {lease.RENEW_SECONDS:.0f} s, so another one would take it."
        )
    lease.check_ttl(span.total_seconds())
    return span


def parse_limit(name: str, value: Any) -> timedelta:
    """Parse how long something may take: a timedelta, or seconds; not 0."""
    span = parse_span(name, value)
    if not span:
        raise InvalidInputError(f"{name}={value!r} leaves no time.")
    return span


def parse_count(name: str, value: Any) -> int | None:
    """Parse an optional number of at least one."""
    text = parse_text(value)
    if text is None:
        return None
    try:
        count = int(text)
    except ValueError:
        raise InvalidInputError(f"{name}={value!r} is not a whole number.") from None
    if count < 1:
        raise InvalidInputError(f"{name}={value!r} is less than one.")
    return count


def parse_time_of_day(name: str, value: Any) -> time | None:
    """Parse an optional time of day, as `07:00`; a template that rendered to nothing is refused."""
    if value is None:
        return None
    try:
        return window.parse_time_of_day(str(value))
    except ValueError:
        raise InvalidInputError(
            f"{name}={value!r} is not a time of day, such as '07:00'."
        ) from None


def parse_optional_limit(name: str, value: Any) -> timedelta | None:
    """Parse an optional duration: a timedelta, or seconds; not 0."""
    return None if value is None else parse_limit(name, value)


def parse_bytes(name: str, value: Any) -> float:
    """Parse an amount of memory in bytes, as for Ray's `memory` resource."""
    try:
        amount = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(f"{name}={value!r} is not a number of bytes.") from None
    if not 0 <= amount < math.inf:
        raise InvalidInputError(f"{name}={value!r} is not an amount of memory.")
    return amount


def parse_text(value: Any) -> str | None:
    """Parse an optional text; a template that rendered to nothing gives None."""
    if value is None:
        return None
    text = str(value).strip()
    return None if text in ("", "None") else text


def parse_ids(name: str, value: Any) -> tuple[str, ...]:
    """Parse a list of ids, or text that holds them: between commas or lines, or a rendered list.

    An argument that was given and names none is refused: an empty line of a form must not mean all.
    """
    items = _split_ids(value) if isinstance(value, str) else parse_list(name, value or (), "ids")
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise InvalidInputError(f"{name}={value!r} holds an empty value, or one that is not an id.")
    if not items:
        raise InvalidInputError(
            f"{name}={value!r} names no trial. Nothing was done. Does its template name a Param, a "
            f"Variable or an XCom that is empty? To take all trials, leave {name} out."
        )
    return tuple(item.strip() for item in items)


def _split_ids(text: str) -> list[Any]:
    """Return the items of a list that a template rendered to text, or the parts of any other text."""
    text = parse_text(text) or ""
    if not text.startswith("["):
        return [part for part in _BETWEEN_IDS.split(text) if part.strip()]
    items = _read_literal(text)
    return items if isinstance(items, list) else [None]


def _read_literal(text: str) -> Any:
    """Return the list or mapping that a template rendered to text; None if it is not one."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return None


def parse_only(name: str, value: Any) -> Only:  # noqa: ARG001  a parser takes the name
    """Parse which trials are restored, also where a template rendered a list or mapping to text."""
    if isinstance(value, str):
        text = parse_text(value) or ""
        value = _read_literal(text) if text.startswith(("[", "{")) else text
    if isinstance(value, Mapping):
        value = {key: _read_words(key, each) for key, each in value.items()}
    return Only.parse(value)


def _read_words(key: Any, value: Any) -> Any:
    """Return the list of words that a template rendered to text; patterns may start with `[`, too."""
    is_list = key in WORDS and isinstance(value, str) and value.strip().startswith("[")
    return _split_ids(value) if is_list else value


def parse_entrypoint(name: str, value: Any) -> str:
    """Parse the command line of a script."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(
            f"{name}={value!r} is not a command line, such as 'python sweep.py'. Nothing was started."
        )
    return value


def check_new_place(name: str, value: Any) -> None:
    """Refuse a place for a new experiment that lacks its name.

    A template that rendered to nothing leaves the directory of all sweeps, or a bucket.
    """
    text = parse_text(value) or ""
    place = Location.parse(text)
    if text.endswith("/") or not place.name or not place.path:
        raise InvalidInputError(
            f"{name}={value!r} does not end in the name of an experiment, so nothing was started. Give "
            "the directory that the sweep makes, without a slash at its end. Does its template end in "
            "a Param or a Variable that is empty?"
        )


def parse_trainable(name: str, value: Any) -> Any:
    """Return the trainable, as text or a mapping, also where a template rendered a mapping to text.

    A mapping that was taken for the name of a trainable would fit no experiment, or fail each trial.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith("{"):
        return value
    found = _read_literal(text)
    if not isinstance(found, Mapping):
        raise InvalidInputError(
            f"{name}={value!r} starts like a mapping, and is none. Write it as Python does, for "
            "example by {{ params.trainables }} or {{ var.json.trainables }}."
        )
    return found


def parse_user(value: Any, *, was_given: bool) -> str | None:
    """Parse the user of runners; None only if the argument was not given.

    An argument that rendered to nothing is refused: a missing Variable must not remove this protection.
    """
    user = parse_text(value)
    if user is None and was_given:
        raise InvalidInputError(
            f"runner_user={value!r} is not the name of a user. Nothing was started: runners would run as "
            "the worker's user. Does its template name a Variable or an XCom that is not set? To run "
            "them as the worker's user, leave runner_user out."
        )
    return user


def parse_globs(name: str, value: Any) -> tuple[str, ...]:
    """Parse patterns, or a single one."""
    if value is None:
        return ()
    patterns = [value] if isinstance(value, str) else parse_list(name, value, "patterns")
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidInputError(f"{name}={value!r} holds a value that is not a pattern.")
    return tuple(pattern for pattern in patterns if pattern.strip())


def parse_depth(name: str, value: Any) -> int:
    """Parse a number of levels."""
    try:
        depth = int(str(value))  # of a float, `int` drops the fraction
    except ValueError:
        raise InvalidInputError(f"{name}={value!r} is not a whole number.") from None
    if depth < 0:
        raise InvalidInputError(f"{name}={value!r} is less than zero.")
    return depth


def parse_health(value: Any) -> frozenset[Health]:
    """Parse a set of health words, or a single one."""
    words = [value] if isinstance(value, str) else parse_list("health", value, "words")
    unknown = sorted(str(word) for word in words if word not in list(Health))
    if unknown or not words:
        raise InvalidInputError(
            f"health={value!r}: {', '.join(unknown) or 'nothing'} is not among "
            f"{', '.join(sorted(Health))}."
        )
    return frozenset(Health(word) for word in words)


def shares_prefix(value: Any) -> bool:
    """Whether the sensor found the experiments below a prefix with experiments in several directories."""
    items = [value] if isinstance(value, str | Mapping) else value or ()
    return any(isinstance(item, Mapping) and item.get("shares_prefix") for item in items)


def parse_addresses(value: Any) -> list[str]:
    """Parse the experiments: one address, several, or the output of the sensor."""
    if value is None or value == "":
        return []
    is_one = isinstance(value, str | Mapping)
    items = [value] if is_one else parse_list("experiments", value, "addresses")
    addresses: dict[str, None] = {}
    for item in items:
        address = item.get("experiment") if isinstance(item, Mapping) else item
        if not isinstance(address, str) or not address:
            raise InvalidInputError(
                f"experiments: {item!r} is neither an address nor an item of the sensor's output."
            )
        addresses[address] = None
    return list(addresses)


def parse_on_unknown(name: str, value: Any) -> bool:
    """Return whether an experiment is refused that no trainable is given for: `skip` or `fail`."""
    if value not in (SKIP_UNKNOWN, _FAIL_UNKNOWN):
        raise InvalidInputError(f"{name}={value!r} is neither 'skip' nor 'fail'.")
    return bool(value == _FAIL_UNKNOWN)


def parse_list(name: str, value: Any, of: str) -> list[Any]:
    """Return the items of a list, or of another collection without keys."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{name}={value!r} is not a list of {of}.")
    return list(value)
