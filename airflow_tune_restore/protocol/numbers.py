"""Checks of untrusted numbers: in states, rows of results and metrics. Standard library only."""

import math
import sys
from typing import Any, TypeGuard

MAX_COUNT = 2**53
"""Limit of counts: other readers of JSON would round larger ones."""

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
"""The range of MessagePack, in which a task sends its XComs (airflow.sdk.execution_time.comms, 3.3.2)."""

_STRICT = frozenset({str, bool, type(None)})
"""Types whose values every reader of JSON takes."""


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a valid number of iterations or samples."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_amount(value: Any) -> TypeGuard[float]:
    """Whether a value is a number from 0 that fits into a float: not -1, not 10**400, not NaN."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def read_iteration(value: Any) -> float | None:
    """Return a `training_iteration` as a number; None if it is not one.

    Ray counts iterations only if the trainable does not report this metric itself
    (`result.setdefault`, ray.tune.trainable.trainable.Trainable.train, 2.60): it may be 1.5, "3", NaN,
    null or true.
    """
    return value if type(value) in (int, float) and abs(value) <= sys.float_info.max else None


def whole_iteration(value: Any) -> int:
    """Return a `training_iteration` as a whole number, to be shown; 0 if it is not a count."""
    number = read_iteration(value)
    return 0 if number is None or not 0 <= number <= MAX_COUNT else int(number)


def strict_json(value: Any) -> Any:
    """Return a value of dicts, lists and scalars without numbers that strict readers refuse.

    NaN and infinities, which JSON lacks, become the strings "nan", "inf" and "-inf". Integers of more
    than 64 bits become strings of digits. Airflow's XComs, events and states refuse both.
    """
    if isinstance(value, dict):
        return {
            # nearly all are texts: a call for each would take most of the time
            key if type(key) is str else strict_json(key): (
                item if type(item) in _STRICT else strict_json(item)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if not isinstance(value, int) or _MIN_INT <= value <= _MAX_INT else str(value)
