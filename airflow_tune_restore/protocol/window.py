"""The window of a restore: from its end on nothing is started, and what runs is paused.

The plan records the end as ISO 8601 text; "" for a restore without one. Standard library only: runners
use it inside Ray images.
"""

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta, tzinfo

_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?")

GRACE_SECONDS = 30.0
"""A runner that has not paused for this long after the end records what is saved, and ends itself."""

FOLLOWED_SECONDS = 60.0
"""Whatever still waits or runs for this long after the end is stopped by the task that follows it.

Longer than the grace of a runner, which ends itself: this is for a pod or job that never started, and for
a runner of an older version."""


def parse_end(text: str) -> datetime | None:
    """Return the end of a window (UTC) from its record; None without one."""
    try:
        end = datetime.fromisoformat(text)
        return end.replace(tzinfo=end.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def is_over(text: str, now: datetime) -> bool:
    """Whether a recorded window has ended."""
    end = parse_end(text)
    return end is not None and now >= end


def last_moment(text: str) -> datetime | None:
    """Return when whoever follows a runner stops it (UTC), if it has not ended itself; None for never."""
    end = parse_end(text)
    try:
        return end and end + timedelta(seconds=FOLLOWED_SECONDS)
    except OverflowError:
        return None


def seconds_until(moment: datetime | None, now: datetime) -> float | None:
    """Return the seconds until a moment, 0 after it; None for never."""
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def stop_at_last_moment(text: str, stop: Callable[[], None]) -> threading.Timer:
    """Return a timer that stops what has not ended by itself with a window (`last_moment`).

    Whoever follows the run cancels it at the end. Without a window it is not started.
    """
    left = seconds_until(last_moment(text), datetime.now(UTC))
    timer = threading.Timer(min(left or 0.0, threading.TIMEOUT_MAX), stop)
    timer.daemon = True
    if left is not None:
        timer.start()
    return timer


def describe_end(text: str) -> str:
    """Return the end of a window for people: `2026-12-01 07:00:00 UTC`."""
    end = parse_end(text)
    return f"{end:%Y-%m-%d %H:%M:%S} UTC" if end is not None else "an unknown time"


def parse_time_of_day(text: str) -> time:
    """Parse a time of day, as `07:00` (ValueError if it is none)."""
    text = text.strip()
    if _TIME_OF_DAY.fullmatch(text) is None:
        raise ValueError("it is not a time of day")
    return time.fromisoformat(text if text[2] == ":" else f"0{text}")


def end_of_window(
    origin: datetime, timezone: tzinfo | None, until: time | None, max_duration: timedelta | None
) -> datetime | None:
    """Return the end of a window (UTC); None for one without an end.

    It is `max_duration` after the origin, or the next time after the origin at which a clock in the time
    zone (None: that of this machine, with its changes) shows `until`, whichever is earlier. One after the
    year 9999 counts as none.
    """
    ends = []
    with suppress(OverflowError):
        if until is not None:
            ends.append(_next_at(origin, timezone, until))
        if max_duration is not None:
            ends.append(origin + max_duration)
    return min(ends, default=None)


def _next_at(origin: datetime, timezone: tzinfo | None, until: time) -> datetime:
    """Return the next moment at which a clock shows a time.

    A time that the clock skips in spring is as far behind the change as it is written; one that it shows
    twice in autumn counts both times.
    """
    today = origin.astimezone(timezone).date()
    moments: list[datetime] = []
    for days in (-1, 0, 1, 2):
        written = datetime.combine(today + timedelta(days=days), until, timezone)
        first, second = (written.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
        moments += [first, max(first, second)]  # in spring the second one is before the change
    return min(moment for moment in moments if moment > origin)
