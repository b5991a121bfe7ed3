"""Threads that ask Airflow for a connection at the same time each get their own answer.

Airflow's own ends of the wire, with a supervisor that answers in the order of the questions. Before 3.2,
they mix up the answers of threads of a task; before 3.2.2, a thread of a trigger ends its triggerer.
"""

import asyncio
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from airflow.jobs.triggerer_job_runner import TriggerCommsDecoder
from airflow.sdk import Connection
from airflow.sdk.execution_time import comms, task_runner

from airflow_tune_restore.hooks.ray_jobs import RayJobsHook, driver_jobs
from airflow_tune_restore.version_compat import in_thread

THREADS = 8
ASKED = [f"ray_{number}" for number in range(40)]


class Supervisor(threading.Thread):
    """Answers every request on a socket, each after a moment."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.theirs, self._own = socket.socketpair()
        self._random = random.Random(5)

    def run(self) -> None:
        with self._own, self._own.makefile("rb") as requests:
            while head := requests.read(4):
                frame = msgspec.msgpack.decode(requests.read(int.from_bytes(head, "big")))
                time.sleep(self._random.random() * 0.004)
                self._own.sendall(answer(*frame[:2]))


def address_of(conn_id: str) -> str:
    return f"http://{conn_id.replace('_', '-')}:8265"


def answer(number: int, body: dict) -> bytes:
    found = None
    if body["type"] == "GetConnection":
        conn_id = body["conn_id"]
        unset = dict.fromkeys(["schema", "login", "password", "port", "extra"])
        found = {"type": "ConnectionResult", "conn_id": conn_id, "conn_type": "ray_jobs", **unset}
        found["host"] = address_of(conn_id)
    return comms._ResponseFrame(id=number, body=found).as_bytes()


@pytest.fixture
def supervisor(monkeypatch):
    monkeypatch.delenv("_AIRFLOW_PROCESS_CONTEXT", raising=False)
    started = Supervisor()
    started.start()
    with started.theirs:
        yield started
    started.join(5)


def look_up(conn_id: str) -> str:
    return RayJobsHook(conn_id).cluster().address


def test_threads_of_a_task(supervisor, monkeypatch):
    of_task = comms.CommsDecoder(socket=supervisor.theirs)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", of_task, raising=False)
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(look_up, ASKED)) == list(map(address_of, ASKED))


async def connect(supervisor: Supervisor) -> TriggerCommsDecoder:
    """Return the end of a triggerer, as it starts it."""
    reader, writer = await asyncio.open_connection(sock=supervisor.theirs)
    of_triggerer = TriggerCommsDecoder(
        async_writer=writer, async_reader=reader, socket=supervisor.theirs
    )
    if hasattr(of_triggerer, "start_reader"):
        await of_triggerer.start_reader()
    return of_triggerer


def test_threads_of_triggers_beside_their_triggerer(supervisor, monkeypatch):
    async def main():
        of_triggerer = await connect(supervisor)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", of_triggerer, raising=False)
        cancelled = [asyncio.create_task(in_thread(look_up, conn_id)) for conn_id in ASKED[:5]]
        asking = [asyncio.create_task(in_thread(look_up, conn_id)) for conn_id in ASKED]
        await asyncio.sleep(0.01)  # their questions are under way
        for task in cancelled:
            task.cancel()
        for conn_id in ASKED:
            found = await of_triggerer.asend(comms.GetConnection(conn_id=conn_id))
            assert found.conn_id == conn_id
        return await asyncio.gather(*asking)

    assert asyncio.run(asyncio.wait_for(main(), 60)) == list(map(address_of, ASKED))


def test_the_thread_that_looks_for_a_driver_asks_airflow_for_nothing(supervisor, monkeypatch):
    """It is one of a pool that scans: no thread of asgiref."""
    asked_by = []

    def get_connection(conn_id):
        asked_by.append(threading.current_thread())
        return Connection(conn_id=conn_id, conn_type="ray_jobs", host="")

    monkeypatch.setattr(
        "airflow_tune_restore.hooks.ray_jobs.BaseHook.get_connection", get_connection
    )
    ask = driver_jobs("ray_1")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(ask, "/sweeps/exp").result()
    assert "has no host" in found.found
    assert asked_by == [threading.current_thread()]
