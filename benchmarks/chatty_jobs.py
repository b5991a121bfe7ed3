"""What jobs that print a flood cost a triggerer: how long its event loop stands still, and its processor.

    uv run python benchmarks/chatty_jobs.py [--jobs 100] [--mib 2]

The triggers of many jobs in one event loop, as in a triggerer, against an API in another process that
answers with a log of so many MiB, in lines of three bytes, for each. It ends when every trigger has shown
its log once. Processor time is that of this process alone; what it logs goes nowhere.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.airflow import home as airflow_home  # noqa: E402, F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.protocol import lease  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from airflow_tune_restore.triggers.ray_job import RayJobTrigger  # noqa: E402
from tests.support.storage.servers import free_port  # noqa: E402

LINE = "ab\n"


class Api(BaseHTTPRequestHandler):
    """Answers as a head whose jobs all print the same flood."""

    protocol_version = "HTTP/1.1"
    jobs = log = b""

    def do_GET(self) -> None:
        """Answer."""
        body = self.jobs if self.path == "/api/jobs/" else self.log
        with contextlib.suppress(ConnectionError):  # nobody wants all of it
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def handle(self) -> None:
        """Serve a connection for as long as it is there."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def serve(port: int, count: int, mib: int) -> None:
    """Be the head."""
    jobs = [
        {"submission_id": f"j{i}", "status": "RUNNING", "entrypoint": "x"} for i in range(count)
    ]
    Api.jobs = json.dumps(jobs).encode()
    Api.log = json.dumps({"logs": LINE * (mib * 1024**2 // len(LINE))}).encode()
    ThreadingHTTPServer(("127.0.0.1", port), Api).serve_forever()


@contextlib.contextmanager
def chatty_head(count: int, mib: int) -> Iterator[str]:
    """Run the API in a process of its own."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port, count, mib))
    process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def timed_turns() -> Iterator[list[float]]:
    """Measure each turn of an event loop, in seconds of processor: others use this machine, too."""
    turns: list[float] = []
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.events.Handle) -> None:
        begun = time.thread_time()
        run(handle)
        turns.append(time.thread_time() - begun)

    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield turns
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]


async def show_all(count: int, experiment: str) -> None:
    """Wait with many triggers until each has shown something."""

    async def fire(one: RayJobTrigger) -> None:
        async for _ in one.run():
            pass

    triggers = [
        RayJobTrigger("ray_bench", f"j{i}", experiment, "r1", f"t{i}", 1, poll_interval=0.05)
        for i in range(count)
    ]
    tasks = [asyncio.create_task(fire(one)) for one in triggers]
    while not all(one._offset for one in triggers):
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--mib", type=int, default=2)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        chatty_head(options.jobs, options.mib) as url,
        open(os.devnull, "w") as nowhere,  # noqa: PTH123  a device
        contextlib.redirect_stdout(nowhere),
        timed_turns() as turns,
    ):
        os.environ["AIRFLOW_CONN_RAY_BENCH"] = json.dumps({"conn_type": "ray_jobs", "host": url})
        store = open_store(directory)
        lease.acquire(store, restore_id="r1", holder="benchmark", ttl_seconds=3600)
        cpu = time.process_time()
        asyncio.run(show_all(options.jobs, directory))
        cpu = time.process_time() - cpu
    print(f"{options.jobs} jobs of {options.mib} MiB: the longest turn of the event loop took "
          f"{max(turns):.3f} s, all together {cpu:.1f} s of processor")  # fmt: skip


if __name__ == "__main__":
    main()
