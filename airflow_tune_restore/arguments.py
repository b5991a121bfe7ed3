"""Parses operator arguments after templating: a rendered `{{ params.x }}` is text."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import Health

_ID = re.compile(r"[^\s,'\"\[\]]+")
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
    """Parse a list of ids, or text that holds them: between commas or lines, or a rendered list."""
    if value is None:
        return ()
    items = _ID.findall(parse_text(value) or "") if isinstance(value, str) else list(value)
    if not all(isinstance(item, str) for item in items):
        raise InvalidInputError(f"{name}={value!r} holds a value that is not an id.")
    return tuple(items)


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


def parse_health(value: Any) -> frozenset[Health]:
    """Parse a set of health words, or a single one."""
    words = [value] if isinstance(value, str) else list(value)
    unknown = sorted(str(word) for word in words if word not in set(Health))
    if unknown or not words:
        raise InvalidInputError(
            f"health={value!r}: {', '.join(unknown) or 'nothing'} is not among "
            f"{', '.join(sorted(Health))}."
        )
    return frozenset(Health(word) for word in words)


def parse_addresses(value: Any) -> list[str]:
    """Parse the experiments: one address, several, or the output of the sensor."""
    if value is None or value == "":
        return []
    items: Iterable[Any] = [value] if isinstance(value, str | Mapping) else value
    addresses: dict[str, None] = {}
    for item in items:
        address = item.get("experiment") if isinstance(item, Mapping) else item
        if not isinstance(address, str) or not address:
            raise InvalidInputError(
                f"experiments: {item!r} is neither an address nor an item of the sensor's output."
            )
        addresses[address] = None
    return list(addresses)
