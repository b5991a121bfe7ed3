"""What of a pod's log the triggerer shows: every line once, whenever it asks."""

import asyncio
import gzip
import itertools
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import kubernetes_asyncio
import pytest

from airflow_tune_restore.hooks import pods_async
from airflow_tune_restore.hooks.pod_logs import LINES_PER_LOOK, FollowedLog, stamped
from airflow_tune_restore.launch.kubernetes import bounded_client
from airflow_tune_restore.launch.kubernetes.container_log import LONGEST_LINE, ContainerLog
from airflow_tune_restore.launch.runner_log import RunnerLog
from tests.support.raw_server import chunk, endlessly, head, raw_server, trickle, whole

POD = SimpleNamespace(metadata=SimpleNamespace(name="p", namespace="n"))
BEGAN = datetime(2026, 11, 24, 13, 51, 40, tzinfo=UTC)


class Log:
    """Stands in for the API server: answers with the lines of the last whole seconds, as it does."""

    def __init__(self, now):
        self.now = now
        self.lines = []
        self.is_out_of_order = False

    async def read_log(self, _name, _namespace, _container, since_seconds, log):
        if self.is_out_of_order:
            return
        oldest = self.now() - timedelta(seconds=since_seconds if since_seconds else 1e6)
        for at, line in self.lines:
            if oldest <= at <= self.now():
                log.take(f"{at:%Y-%m-%dT%H:%M:%S.%f}000Z {line}\n".encode())


@pytest.fixture
def ask(monkeypatch):
    """Ask at some moments; return all that was shown, and from when on the rest is new."""

    def ask_at(seconds, lines, out_of_order=()):
        current = [BEGAN]

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return current[0]

        monkeypatch.setattr(pods_async, "datetime", Clock)
        log, shown, since = Log(lambda: current[0]), [], None
        log.lines = [(BEGAN + timedelta(seconds=at), f"line {at}") for at in lines]
        of_task = SimpleNamespace(info=lambda _text, line: shown.append(line))
        manager = pods_async.FoldingPodManager(log, RunnerLog(of_task))
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


class Stream:
    """A log that is followed: pieces, and the seconds when they come."""

    def __init__(self, clock, pieces, error=None):
        self.clock, self.pieces, self.error = clock, list(pieces), error

    def read1(self, amt, *, decode_content):
        assert amt
        assert decode_content is False
        if not self.pieces:
            if self.error is not None:
                raise self.error
            return b""
        self.clock[0], piece = self.pieces.pop(0)
        return piece


def follow(pieces, error=None, seconds=None):
    clock = [0.0]
    log = FollowedLog(
        where="look there",
        seconds=seconds,
        monotonic=lambda: clock[0],
        response=Stream(clock, pieces, error),
        pod=POD,
        pod_manager=None,
        container_name="base",
    )
    log.logs_available = lambda: True
    return log


def said(number, text="line"):
    return f"2026-01-01T00:00:{number % 60:02d}.000000000Z {text} {number}\n".encode()


def test_lines_of_a_followed_log_come_at_once():
    shown = []
    lines = follow([(0, said(1) + said(2)[:10]), (1, said(2)[10:]), (2, b"half")])
    for line in lines:
        shown.append((line, len(lines.response.pieces)))
    assert shown == [(said(1), 2), (said(2), 1), (b"half\n", 0)]


def test_of_a_flood_the_newest_lines_are_shown_when_it_is_over_and_results_all():
    result = b"2026-01-01T00:00:01Z ::tune-restore-progress:: {}\n"
    flood = b"".join(map(said, range(20_000)))
    shown = list(follow([(0, flood), (1, result), (1, flood + said(0, "the end"))]))
    assert len(shown) == LINES_PER_LOOK + 1 + 1 + 1000
    assert shown[:LINES_PER_LOOK] == [said(n) for n in range(LINES_PER_LOOK)]
    assert shown[LINES_PER_LOOK] == result
    assert b"38,001 lines left out here; look there" in shown[LINES_PER_LOOK + 1]
    assert shown[-1] == said(0, "the end")


def test_after_a_flood_lines_come_at_once_again():
    flood = b"".join(map(said, range(5000)))
    shown = list(follow([(0, flood), (60, said(1, "later")), (61, said(2, "later"))]))
    assert len(shown) == 1000 + 1 + 1000 + 1
    assert shown[-2:] == [said(1, "later"), said(2, "later")]


def test_what_was_held_back_is_shown_before_a_stream_that_breaks():
    flood = b"".join(map(said, range(5000)))
    lines = iter(follow([(0, flood)], ConnectionError()))
    shown = list(itertools.islice(lines, 1000 + 1 + 1000))
    with pytest.raises(ConnectionError):
        next(lines)
    assert shown[-1] == said(4999)


def test_a_log_that_is_not_followed_ends():
    pieces = [(second, b"x") for second in range(100)]
    with pytest.raises(TimeoutError, match="has not ended after 10 s"):
        list(follow(pieces, seconds=10.0))


def test_a_line_without_end_takes_little_memory():
    lines = list(follow([(0, b"x" * 100_000)] * 50))
    assert max(map(len, lines)) < 2 * LONGEST_LINE


def test_a_flood_in_the_triggerer_is_shown_by_its_newest_lines(ask):
    lines = [1 + n / 10_000 for n in range(5000)]
    shown, _ = ask([3.0], lines)
    assert shown[0].startswith("… 4,000 lines left out here; the whole log: kubectl -n n logs p")
    assert shown[1:] == [f"line {at}" for at in lines[-1000:]]


LINES = b"".join(b"2026-01-01T00:00:00.000000000Z line %d\n" % n for n in range(50_000))


def test_a_log_is_read_in_pieces_and_the_newest_lines_kept(monkeypatch):
    log = ContainerLog(lambda _at: True)
    with raw_server(lambda _head: [whole(LINES)]) as server:
        hook_of(server.url, monkeypatch, log)
    shown = stamped(log.newest.take("look there"))
    stamp = "2026-01-01T00:00:00.000000000Z"
    assert shown[0] == f"{stamp} … 49,000 lines left out here; look there"
    assert shown[-1] == f"{stamp} line 49999"
    assert len(shown) == 1001


@pytest.mark.parametrize(
    "answer",
    [
        lambda: [whole(gzip.compress(bytes(64 * 1024**2)), "Content-Encoding: gzip")],
        lambda: itertools.chain([head()], endlessly(b"x" * 4096)),
        lambda: itertools.chain([head("Transfer-Encoding: chunked")], trickle(chunk(b"x"))),
    ],
)
def test_a_log_that_breaks_a_bound_is_read_later(monkeypatch, answer):
    monkeypatch.setattr(pods_async, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(bounded_client, "MOST_BYTES", 100_000)
    log = ContainerLog(lambda _at: True)
    with raw_server(lambda _head: answer()) as server:
        assert not hook_of(server.url, monkeypatch, log)._log_is_readable


def hook_of(url, monkeypatch, log):
    hook = pods_async.PatientAsyncKubernetesHook()

    async def load():
        hook.client_configuration = kubernetes_asyncio.client.Configuration(url)

    monkeypatch.setattr(hook, "_load_config", load)
    asyncio.run(hook.read_log("p", "n", "base", None, log))
    return hook
