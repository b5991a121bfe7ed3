"""Dashboards that answer anything: each answer is bounded in size, in time and in what it becomes."""

import gzip
import itertools
import json
import tracemalloc

import msgspec
import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError, TuneRestoreError
from airflow_tune_restore.launch.ray import http_answer, jobs_api
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job_log import JobLog
from airflow_tune_restore.launch.ray.jobs_api import RayJob, RayJobs
from tests.support.raw_server import chunk, endlessly, head, raw_server, trickle, whole

QUESTIONS = {
    "version": lambda jobs: jobs.version(),
    "find": lambda jobs: jobs.find("a"),
    "list": lambda jobs: jobs.list_all(),
    "submit": lambda jobs: jobs.submit({"submission_id": "a"}),
    "stop": lambda jobs: jobs.stop("a"),
    "log": lambda jobs: jobs.read_log("a", JobLog(results=None)),
    "has_package": lambda jobs: jobs.has_package("a.zip"),
    "upload": lambda jobs: jobs.upload_package("a.zip", b"zip"),
}

BOMB = gzip.compress(bytes(64 * 1024**2))

CHUNKED = head("Transfer-Encoding: chunked")
TOO_LONG = {
    "without a length": lambda: itertools.chain([head()], endlessly(b" " * 4096)),
    "chunks without end": lambda: itertools.chain([CHUNKED], endlessly(chunk(b" " * 4096))),
    "a length beyond all bounds": lambda: itertools.chain(
        [head(f"Content-Length: {10**15}")], endlessly(b" " * 4096)
    ),
}
PACKED = {
    "gzip": lambda: [whole(BOMB, "Content-Encoding: gzip")],
    "twice": lambda: [whole(gzip.compress(BOMB), "Content-Encoding: gzip, gzip")],
    "in capitals": lambda: [whole(BOMB, "Content-Encoding: GZIP")],
    "in an error": lambda: [
        whole(BOMB, "Content-Encoding: gzip", status="500 Internal Server Error")
    ],
}
TOO_SLOW = {
    "a byte now and then": lambda: itertools.chain([head(f"Content-Length: {10**6}")], trickle()),
    "a chunk now and then": lambda: itertools.chain([CHUNKED], trickle(chunk(b" "))),
    "a head that never ends": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], trickle(b"x")),
    "a head that never begins": lambda: itertools.chain([b"HTTP/1."], trickle(b"")),
    "interim answers": lambda: trickle(b"HTTP/1.1 100 Continue\r\n\r\n"),
}
CUT_SHORT = {
    "fewer bytes than announced": lambda: [head("Content-Length: 100"), b"{"],
    "no last chunk": lambda: [CHUNKED, chunk(b"{")],
    "nothing": list,
    "a huge header": lambda: [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**6 + b"\r\n\r\n"],
}


@pytest.fixture
def ask(monkeypatch):
    """Ask a question of a server that gives one answer."""

    def one(question, answer):
        with raw_server(lambda _head: answer()) as server:
            result = QUESTIONS[question](RayJobs(Cluster(address=server.url, token="t0ken")))
            assert all("accept-encoding: identity" in head.lower() for head in server.heads)
            return result

    return one


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", TOO_LONG)
def test_an_answer_has_a_length(ask, monkeypatch, question, answer):
    for bound in ("LIST_BYTES", "JOB_BYTES", "LOG_BYTES", "ANSWER_BYTES"):
        monkeypatch.setattr(jobs_api, bound, 64 * 1024)
    monkeypatch.setattr(jobs_api.LogText, "read", lambda self, piece: "x" * len(piece))
    monkeypatch.setitem(jobs_api.AsyncRayJobs._send.__kwdefaults__, "most_bytes", 64 * 1024)
    with pytest.raises(RayClusterError, match="HTTP 200 with more than 65,536 bytes"):
        ask(question, TOO_LONG[answer])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", PACKED)
def test_what_comes_packed_is_not_unpacked(ask, question, answer):
    tracemalloc.start()
    try:
        with pytest.raises(RayClusterError, match=r"HTTP (200|500) with Content-Encoding"):
            ask(question, PACKED[answer])
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", TOO_SLOW)
def test_an_answer_has_a_deadline(ask, monkeypatch, question, answer):
    for name in ("REQUEST_SECONDS", "LOG_SECONDS", "UPLOAD_SECONDS"):
        monkeypatch.setattr(jobs_api, name, 0.2)
    with pytest.raises(RayClusterError, match=r"the answer took longer than 0\.2 s"):
        ask(question, TOO_SLOW[answer])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", CUT_SHORT)
def test_an_answer_that_breaks_off_may_come_whole_again(ask, question, answer):
    with pytest.raises(RayClusterError, match="the answer was cut off"):
        ask(question, CUT_SHORT[answer])


def test_a_compressed_answer_without_a_header_is_bytes(ask):
    with pytest.raises(InvalidInputError, match="not the dashboard"):
        ask("find", lambda: [whole(BOMB)])


@pytest.mark.parametrize("body", [b"[" + b"[]," * 10**6 + b"[]]", b"[" + b"{}," * 10**6 + b"{}]"])
@pytest.mark.parametrize("question", ["find", "list"])
def test_an_answer_has_so_many_values(ask, question, body):
    with pytest.raises(RayClusterError, match=f"more than {http_answer.MOST_VALUES:,} values"):
        ask(question, lambda: [whole(body)])


def test_the_most_values_take_no_more_than_they_should():
    values = http_answer.MOST_VALUES // 2 - 2
    body = b"[" + b'{"status":""},' * values + b'{"status":""}]'
    tracemalloc.start()
    try:
        assert len(http_answer.decode(body, msgspec.json.Decoder(list[RayJob]))) == values + 1
        assert tracemalloc.get_traced_memory()[1] < 128 * 1024**2
    finally:
        tracemalloc.stop()


ODD = [
    None,
    True,
    -1,
    10**400,
    1.5,
    float("nan"),
    "",
    "\ud800",
    "\x1b[31m::group::",
    "x" * 100_000,
    [],
    [[]],
    {},
    {"a": []},
]
FIELDS = ["submission_id", "status", "entrypoint", "metadata", "message", "driver_exit_code"]
RAW = [b"", b"null", b"[]", b"{}", b"5", b'"x"', b"{", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5]
RAW += [b'{"status": "RUNNING", "runtime_env": ' + b"[" * 10**5, b"9" * 5000]


def shapes():
    """Return bodies with an odd value at each field, and some that are odd altogether."""
    good = {"submission_id": "a", "status": "RUNNING", "entrypoint": "x", "metadata": {"a": "b"}}
    for field, value in itertools.product(FIELDS, ODD):
        yield json.dumps({**good, field: value}).encode()
    for value in ODD:
        yield json.dumps({"ray_version": value}).encode()
        yield json.dumps({"logs": value}).encode()
    yield b'{"ray_version": "' + b"9" * 5000 + b'.1"}'
    yield b'{"logs": "\\x"}'
    yield b'{"logs": "\\ud83d'
    yield from RAW


def test_a_shape_that_is_not_expected_is_a_package_error_or_harmless():
    bodies, answered, errors = list(shapes()), 0, []
    current = [b""]
    with raw_server(lambda _head: [whole(current[0])]) as server:
        jobs = RayJobs(Cluster(address=server.url))
        for body, question in itertools.product(bodies, ("version", "find", "list", "log")):
            current[0] = b"[%s]" % body if question == "list" else body
            try:
                found = QUESTIONS[question](jobs)
            except TuneRestoreError as error:
                errors.append(str(error))
                continue
            answered += 1
            for job in found if isinstance(found, list) else [found]:
                if isinstance(job, RayJob):
                    assert isinstance(job.status, str)
                    assert job.driver_exit_code is None or abs(job.driver_exit_code) < 2**33
                    assert all(isinstance(v, str) for v in (job.metadata or {}).values())
    assert max(map(len, errors)) < 1000
    assert not any("\x1b" in words for words in errors)
    assert answered > len(FIELDS)  # strings are strings, whatever their content


def test_a_log_is_read_in_pieces_wherever_they_are_cut():
    text = 'é \\ " / \b\f\n\r\t \ud83d\ude00 \udc80 😀 end'
    for body in (json.dumps({"logs": text}).encode(), b' { "logs" : "\xc3\xa9\xf0\x9f\x98\x80" }'):
        expected = json.loads(body)["logs"]
        for size in range(1, len(body)):
            read = jobs_api.LogText()
            cuts = range(0, len(body), size)
            assert "".join(read.read(body[cut : cut + size]) for cut in cuts) == expected
            assert read.is_whole


def test_a_log_of_any_length_takes_little_memory(ask):
    line = json.dumps("a line of a log\n")[1:-1].encode() * 4096
    pieces = [head(), b'{"logs": "', *[line] * 80, b'"}']
    tracemalloc.start()
    try:
        ask("log", lambda: pieces)
        assert tracemalloc.get_traced_memory()[1] < sum(map(len, pieces)) / 2
    finally:
        tracemalloc.stop()


def test_no_more_of_a_log_is_asked_for_than_is_wanted():
    log = JobLog(results=None, most=1024**2)
    answer = itertools.chain([head(), b'{"logs": "'], endlessly(b"a line\\n" * 1024))
    with raw_server(lambda _head: answer) as server:
        RayJobs(Cluster(address=server.url)).read_log("a", log)
    assert log.is_enough
    assert log.read < 2 * 1024**2


def test_a_question_can_be_asked_in_the_middle_of_another(ask):
    """Airflow calls `on_kill` from a signal handler."""
    import asyncio

    async def main():
        return ask("find", lambda: [whole(b'{"status": "RUNNING"}')])

    assert asyncio.run(main()).status == "RUNNING"
