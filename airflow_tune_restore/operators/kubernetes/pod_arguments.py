"""Checks arguments of a pod that an API server may refuse, before an attempt is claimed."""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow_tune_restore.arguments import parse_bytes, parse_span
from airflow_tune_restore.exceptions import InvalidInputError

MOST_SECONDS = 2**31 - 1
"""The longest `activeDeadlineSeconds` that an API server accepts."""


def parse_ttl(ttl: Any) -> int | None:
    """Return the longest life of a pod in whole seconds, rounded up, from a timedelta or seconds."""
    if ttl is None:
        return None
    span = parse_span("ttl", ttl)
    if span < timedelta(seconds=1):
        raise InvalidInputError(f"ttl={ttl!r} is less than one second.")
    seconds = math.ceil(span / timedelta(seconds=1))
    if seconds > MOST_SECONDS:
        raise InvalidInputError(
            f"ttl={ttl!r} is more than the {MOST_SECONDS} seconds that Kubernetes allows."
        )
    return seconds


def parse_grace_period(seconds: Any) -> int | None:
    """Return the grace period of a pod in seconds; None for Kubernetes' own default."""
    if seconds is None:
        return None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or seconds < 0:
        raise InvalidInputError(
            f"termination_grace_period={seconds!r} is not a whole number of seconds, zero or more."
        )
    return seconds


def parse_patience(name: str, seconds: Any) -> float:
    """Return how many seconds a pod may wait."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidInputError(f"{name}={seconds!r} is not a positive number of seconds.")
    return float(seconds)


def check_env(env: Any) -> None:
    """Refuse variables without a value: a pod would get the text `None`."""
    if not isinstance(env or {}, Mapping):
        raise InvalidInputError(f"env={env!r} is not a mapping of names to values.")
    for name, value in (env or {}).items():
        if value is None:
            raise InvalidInputError(f"env={{{name!r}: None}} has no value.")


def parse_object_store(size: Any) -> int:
    """Return the size of Ray's object store in bytes."""
    size_bytes = int(parse_bytes("object_store_memory", size))
    if size_bytes < 1:
        raise InvalidInputError(f"object_store_memory={size!r} is not a positive number of bytes.")
    return size_bytes
