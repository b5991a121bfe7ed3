"""The window of a DAG run, and the ids of the DAG runs that `repeat` starts within it."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from airflow.sdk import Context

from airflow_tune_restore import arguments
from airflow_tune_restore.protocol.window import describe_end, end_of_window

_RUN_ID = re.compile(r"tune_restore_repeat__(?P<origin>[^_]+)__(?P<number>[1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a DAG run: from its end (UTC) nothing is started, and what runs is paused.

    It counts from the first DAG run of a row that `repeat` has started. Without an end it is never over.
    """

    end: datetime | None = None

    @classmethod
    def of(cls, context: Context, until: Any, max_duration: Any) -> Self:
        """Return the window of the DAG run of a task, from the arguments of its operator.

        Raises:
            InvalidInputError: If one of them is not valid.
        """
        time_of_day = arguments.parse_time_of_day("until", until)
        duration = arguments.parse_optional_limit("max_duration", max_duration)
        if time_of_day is None and duration is None:
            return cls()
        dag_run, dag = context["dag_run"], context["dag"]
        origin = Repetition.of_run(dag_run.run_id, dag_run.run_after).origin
        return cls(end_of_window(origin, dag.timezone, time_of_day, duration))

    @property
    def is_over(self) -> bool:
        """Whether it has ended, by the clock of this machine."""
        return self.end is not None and now() >= self.end

    @property
    def seconds_left(self) -> float:
        """The seconds until its end, 0 after it; infinite without an end."""
        return math.inf if self.end is None else max(0.0, (self.end - now()).total_seconds())

    def __str__(self) -> str:
        return "no end" if self.end is None else describe_end(self.end.isoformat())


def now() -> datetime:
    """Return the time by the clock of this machine."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """The place of a DAG run in a row of DAG runs that start each other.

    Args:
        origin: When the first one was to run (UTC).
        number: How many were started before it by `repeat`; 0 for the first.
    """

    origin: datetime
    number: int = 0

    @classmethod
    def of_run(cls, run_id: str, run_after: datetime) -> Self:
        """Return the place of a DAG run: from its own id if `repeat` has started it."""
        first = cls(origin=run_after.astimezone(UTC))
        found = _RUN_ID.fullmatch(run_id)
        if found is None:
            return first
        try:
            origin = datetime.fromisoformat(found["origin"])
            is_first = origin.tzinfo is not None and origin <= first.origin
            # else a user has named it, who must not move the end of its window
            return (
                cls(origin=origin.astimezone(UTC), number=int(found["number"]))
                if is_first
                else first
            )
        except (ValueError, OverflowError):
            return first

    def next_run_id(self) -> str:
        """Return the id of the DAG run after it: the same whenever it is asked for."""
        origin = self.origin.isoformat().replace("+00:00", "Z")
        return f"tune_restore_repeat__{origin}__{self.number + 1}"
