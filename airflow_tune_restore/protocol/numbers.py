"""Numbers that anybody may have written: into a state, into a row of results, into a metric.

Standard library only: runners read them, too.
"""

import math
import sys
from typing import Any, TypeGuard

MAX_COUNT = 2**53
"""Iterations and samples above this are not counts: other readers of JSON would round them."""

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
"""What MessagePack has, in which a task sends its XComs (airflow.sdk.execution_time.comms, 3.3.2)."""


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value can be a number of iterations or samples."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_amount(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that JSON and floats can hold; not -1, not 10**400, not NaN."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def read_iteration(value: Any) -> float | None:
    """Return a `training_iteration` as a number; None if it is not one.

    Ray counts iterations only where the trainable does not report that metric itself
    (`result.setdefault`, ray.tune.trainable.trainable.Trainable.train, 2.60): it may be 1.5, "3", NaN,
    null or true.
    """
    return value if type(value) in (int, float) and abs(value) <= sys.float_info.max else None


def whole_iteration(value: Any) -> int:
    """Return a `training_iteration` as a whole number, to be shown; 0 if it does not count anything."""
    number = read_iteration(value)
    return 0 if number is None or not 0 <= number <= MAX_COUNT else int(number)


def strict_json(value: Any) -> Any:
    """Return a value of dicts, lists and scalars with no number in it that strict readers refuse.

    NaN and infinities, which JSON does not know, become the strings "nan", "inf" and "-inf"; integers of
    more than 64 bits their digits. Airflow's XComs, events and states take neither.
    """
    if isinstance(value, dict):
        return {strict_json(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if not isinstance(value, int) or _MIN_INT <= value <= _MAX_INT else str(value)
