"""What it costs to wait for 1,000 deferred trials: the triggerer's CPU, and requests to the Ray head.

    uv run python benchmarks/wait_1000.py recorded [--triggers 1000] [--seconds 120]
    uv run python benchmarks/wait_1000.py real [--jobs 100]

`recorded`: the triggers of 1,000 trials in one event loop, as in a triggerer, against an API in another
process that answers `GET /api/jobs/` with 1,000 running jobs as a real head (Ray 2.60) described one, and
progress of all trials on a real S3 server. `real`: a real head on this machine, many short jobs at once;
every trigger must fire. CPU is that of this process alone, which has the part of the triggerer.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.airflow import home as airflow_home  # noqa: E402, F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook  # noqa: E402
from airflow_tune_restore.launch.ray.jobs_api import AsyncRayJobs  # noqa: E402
from airflow_tune_restore.protocol import (  # noqa: E402
    layout,  # noqa: E402
    lease,  # noqa: E402
)
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from airflow_tune_restore.triggers.ray_job import RayJobTrigger  # noqa: E402
from tests.support.ray.cluster import ray_cluster  # noqa: E402
from tests.support.storage.servers import free_port, s3_server  # noqa: E402

INTERVAL = 5.0
RECORDED = {
    "type": "SUBMISSION",
    "job_id": "02000000",
    "driver_info": {"id": "02000000", "node_ip_address": "10.0.0.7", "pid": "9551"},
    "status": "RUNNING",
    "entrypoint": "exec python -m airflow_tune_restore.runner run --experiment s3://bucket/sweep "
    "--request .tune_restore/airflow-b0f4e53d05caf768/trials/69175_00001/attempts/000001/request.json",
    "message": "Job is currently running.",
    "error_type": None,
    "start_time": 1795510026674,
    "end_time": None,
    "metadata": {
        "restore_id": "airflow-b0f4e53d05caf768",
        "trial_id": "69175_00001",
        "attempt": "1",
    },
    "runtime_env": {
        "py_modules": ["gcs://_ray_pkg_2b7e7f184b4f33422405ba30eff33988.zip"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "AWS_ENDPOINT_URL": "http://127.0.0.1:8333"},
    },
    "driver_agent_http_address": "http://10.0.0.7:52365",
    "driver_node_id": "5b1b0d0d1d5f7f1e5a0f0b7f6c7f3c1e3b6f4c8d2a1e9f0c7b5a4d3e",
    "driver_exit_code": None,
}
"""A job as a head of Ray 2.60 describes it."""


class Api(BaseHTTPRequestHandler):
    """Answers as a head with running jobs does, and counts."""

    protocol_version = "HTTP/1.1"
    body = b""
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        """Answer."""
        kind = "list" if self.path == "/api/jobs/" else self.path.rpartition("/")[2]
        self.asked[kind] += kind != "asked"
        answer = {
            "list": self.body,
            "logs": json.dumps({"logs": "a line\n" * 200}).encode(),
            "asked": json.dumps(self.asked).encode(),
        }[kind]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def serve(port: int, count: int) -> None:
    """Be the head."""
    jobs = [{**RECORDED, "submission_id": f"tune-restore-{i}"} for i in range(count)]
    Api.body = json.dumps(jobs).encode()
    ThreadingHTTPServer(("127.0.0.1", port), Api).serve_forever()


@contextlib.contextmanager
def recorded_head(count: int) -> Iterator[str]:
    """Run the recorded API in a process of its own."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port, count))
    process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def trigger(number: int, experiment: str, submission_id: str) -> RayJobTrigger:
    """Make the trigger of one trial."""
    return RayJobTrigger(
        ray_conn_id="ray_bench",
        submission_id=submission_id,
        experiment=experiment,
        restore_id="r1",
        trial_id=f"t{number}",
        attempt=1,
        poll_interval=INTERVAL,
    )


async def fire(one: RayJobTrigger) -> dict[str, Any]:
    """Wait for a trigger's event."""
    return dict(await anext(event.payload async for event in one.run()))


async def wait_recorded(count: int, seconds: float, url: str, experiment: str) -> dict[str, Any]:
    """Wait with many triggers for a while, and say what it cost once they are all at work."""
    import httpx

    tasks = [
        asyncio.create_task(fire(trigger(i, experiment, f"tune-restore-{i}"))) for i in range(count)
    ]
    await asyncio.sleep(20)
    async with httpx.AsyncClient() as client:
        before = (await client.get(f"{url}/asked")).json()
        cpu, begun = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        cpu, wall = time.process_time() - cpu, time.monotonic() - begun
        after = (await client.get(f"{url}/asked")).json()
    for task in tasks:
        task.cancel()
    ended = [task for task in await asyncio.gather(*tasks, return_exceptions=True)
             if not isinstance(task, asyncio.CancelledError)]  # fmt: skip
    asked = {kind: after[kind] - before.get(kind, 0) for kind in after}
    return {
        "triggers": count,
        "ended early": len(ended),
        "seconds": round(wall, 1),
        "percent of a core": round(100 * cpu / wall, 2),
        "requests": asked,
        "requests a poll interval": round(sum(asked.values()) / (wall / INTERVAL), 2),
    }


def recorded(count: int, seconds: float) -> None:
    """Measure against the recorded API."""
    with recorded_head(count) as url, s3_server() as s3:
        os.environ.update(s3.env)
        os.environ["AIRFLOW_CONN_RAY_BENCH"] = json.dumps({"conn_type": "ray_jobs", "host": url})
        experiment = f"{s3.url}/sweep"
        store = open_store(experiment)
        lease.acquire(store, restore_id="r1", holder="benchmark", ttl_seconds=3600)
        report = RunnerProgress(trial_id="t", iteration=3, metrics={"score": 0.5})
        tail = ProgressTail(first=0, reports=[report] * 20).to_json()
        for number in range(count):
            store.put(layout.progress_key("r1", f"t{number}", 1), tail)
        print(json.dumps(asyncio.run(wait_recorded(count, seconds, url, experiment)), indent=1))


async def wait_real(count: int, experiment: str) -> dict[str, Any]:
    """Wait for many short jobs of a real head, and say what it cost."""
    asked: Counter[str] = Counter()
    send = AsyncRayJobs._send

    async def counted(self: AsyncRayJobs, method: str, path: str, **bounds: Any) -> Any:
        asked[path.rpartition("/")[2] or "list"] += 1
        return await send(self, method, path, **bounds)

    AsyncRayJobs._send = counted  # type: ignore[method-assign]
    cpu, begun = time.process_time(), time.monotonic()
    events = await asyncio.wait_for(
        asyncio.gather(*(fire(trigger(i, experiment, f"bench-{i}")) for i in range(count))), 900
    )
    cpu, wall = time.process_time() - cpu, time.monotonic() - begun
    return {
        "jobs": count,
        "fired": len(events),
        "lost": sum(bool(event["is_lost"]) for event in events),
        "seconds": round(wall, 1),
        "percent of a core": round(100 * cpu / wall, 2),
        "requests": dict(asked),
        "requests a poll interval": round(sum(asked.values()) / (wall / INTERVAL), 2),
    }


def real(count: int, directory: str) -> None:
    """Measure against a real head."""
    with ray_cluster({}, num_cpus=2) as cluster:
        os.environ["AIRFLOW_CONN_RAY_BENCH"] = json.dumps(cluster.connection)
        store = open_store(directory)
        lease.acquire(store, restore_id="r1", holder="benchmark", ttl_seconds=3600)
        jobs = RayJobsHook("ray_bench").jobs()
        took = []
        for number in range(count):
            begun = time.monotonic()
            submission = {"entrypoint": "sleep 5; echo done", "entrypoint_num_cpus": 0.25}
            jobs.submit({**submission, "submission_id": f"bench-{number}"})
            took.append(time.monotonic() - begun)
        print(f"a submission takes {statistics.median(took):.3f} s")
        print(json.dumps(asyncio.run(wait_real(count, directory)), indent=1))


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["recorded", "real"])
    parser.add_argument("--triggers", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    if options.what == "recorded":
        recorded(options.triggers, options.seconds)
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            real(options.jobs, directory)


if __name__ == "__main__":
    main()
