"""What of a pod's log the triggerer shows: every line once, whenever it asks."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from airflow_tune_restore.hooks import pods

POD = SimpleNamespace(metadata=SimpleNamespace(name="p", namespace="n"))
BEGAN = datetime(2026, 11, 24, 13, 51, 40, tzinfo=UTC)


class Log:
    """Stands in for the API server: answers with the lines of the last whole seconds, as it does."""

    def __init__(self, now):
        self.now = now
        self.lines = []
        self.is_out_of_order = False

    async def read_logs(self, *, since_seconds, **_where):
        if self.is_out_of_order:
            return []
        oldest = self.now() - timedelta(seconds=since_seconds if since_seconds else 1e6)
        return [
            f"{at:%Y-%m-%dT%H:%M:%S.%f}000Z {line}"
            for at, line in self.lines
            if oldest <= at <= self.now()
        ]


@pytest.fixture
def ask(monkeypatch):
    """Ask at some moments; return all that was shown, and from when on the rest is new."""

    def ask_at(seconds, lines, out_of_order=()):
        current = [BEGAN]

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return current[0]

        monkeypatch.setattr(pods, "datetime", Clock)
        log, shown, since = Log(lambda: current[0]), [], None
        log.lines = [(BEGAN + timedelta(seconds=at), f"line {at}") for at in lines]
        manager = pods.DescribingPodManager(log, lambda line: line)
        monkeypatch.setattr(
            type(manager),
            "log",
            SimpleNamespace(log=lambda _level, _text, _c, line: shown.append(line)),
        )
        for at in seconds:
            current[0] = BEGAN + timedelta(seconds=at)
            log.is_out_of_order = at in out_of_order
            since = asyncio.run(manager.fetch_container_logs_before_current_sec(POD, "base", since))
        return shown, (since - BEGAN).total_seconds()

    return ask_at


def test_the_beginning_of_a_second_is_shown_by_the_next_look(ask):
    shown, since = ask([3.9, 8.88], lines=[1.0, 3.1, 3.95, 5.0])
    assert shown == ["line 1.0", "line 3.1", "line 3.95", "line 5.0"]
    assert since == 8


def test_what_the_last_look_left_is_left_to_the_task(ask):
    shown, since = ask([3.9], lines=[1.0, 3.1])
    assert shown == ["line 1.0"]
    assert since <= 3.1
    assert math.ceil(4.98 - since) >= 4.98 - 3.1


def test_nothing_is_shown_twice(ask):
    lines = [n / 4 for n in range(40)]
    shown, _ = ask([2.5, 4.99, 7.0, 12.0], lines)
    assert shown == [f"line {at}" for at in lines]


def test_what_could_not_be_read_is_shown_later(ask):
    shown, _ = ask([2.5, 5.5, 9.5], lines=[1.0, 3.0, 5.0, 7.0], out_of_order=[5.5])
    assert shown == ["line 1.0", "line 3.0", "line 5.0", "line 7.0"]
