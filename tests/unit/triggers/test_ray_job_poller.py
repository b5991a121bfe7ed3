"""Many triggers, one request per poll."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import ClassVar

import pytest

from airflow_tune_restore.exceptions import RayClusterError
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.jobs_api import RayJob
from airflow_tune_restore.triggers import ray_job_poller
from airflow_tune_restore.triggers.ray_job_poller import JobPoller, JobWatch
from tests.support.waiting import PATIENCE_SECONDS

CLUSTER = Cluster(address="http://head:8265", token="t")
INTERVAL = 0.02


@pytest.fixture
def head(monkeypatch):
    """Stands in for the cluster."""

    class Head:
        asked: ClassVar[Counter] = Counter()
        jobs: ClassVar[dict] = {}
        error: Exception | None = None
        log_errors: ClassVar[dict] = {}
        closed = 0

        def __init__(self, cluster):
            assert cluster == CLUSTER

        async def list_all(self):
            Head.asked["list"] += 1
            if Head.error is not None:
                raise Head.error
            return list(Head.jobs.values())

        async def read_log(self, submission_id, log):
            Head.asked[submission_id] += 1
            if submission_id in Head.log_errors:
                raise Head.log_errors[submission_id]
            log.take(f"{submission_id} says\n")

        async def close(self):
            Head.closed += 1

    monkeypatch.setattr(ray_job_poller, "AsyncRayJobs", Head)
    return Head


def job(name: str, status: str = "RUNNING") -> RayJob:
    return RayJob(submission_id=name, status=status)


def watching(name: str, *, wants_log: bool):
    watch = JobWatch(submission_id=name, interval=INTERVAL, wants_log=wants_log)
    return JobPoller.watch(watch, CLUSTER)


async def until(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def test_many_jobs_cost_the_requests_of_one_and_logs_take_turns(head):
    head.jobs = {f"j{i}": job(f"j{i}") for i in range(200)}

    async def main():
        async with AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(watching(name, wants_log=True))
                for name in head.jobs
            ]
            begun = asyncio.get_running_loop().time()
            await until(lambda: sum(head.asked.values()) >= 10)
            seconds = asyncio.get_running_loop().time() - begun
            assert sum(head.asked.values()) <= seconds / INTERVAL + 2
            assert all(watch.job.status == "RUNNING" for watch in watches)
            logs = [count for name, count in head.asked.items() if name != "list"]
            assert set(logs) == {1}
            head.jobs["j3"] = job("j3", "SUCCEEDED")
            await until(lambda: watches[3].is_over)
            assert sum(watch.is_over for watch in watches) == 1
        await until(lambda: head.closed)

    asyncio.run(main())
    assert head.closed == 1
    assert not JobPoller._all


def test_a_job_that_the_head_no_longer_has_is_lost_but_not_at_once(head):
    head.jobs = {}

    async def main():
        async with watching("x", wants_log=True) as watch:
            await until(lambda: head.asked["list"] == 1)
            assert not watch.is_lost
            await until(lambda: watch.is_lost)
            assert head.asked["list"] >= ray_job_poller.ABSENT_LISTS

    asyncio.run(main())


def test_a_head_out_of_reach_is_waited_for(head, monkeypatch):
    head.jobs = {"x": job("x")}
    head.error = RayClusterError("Ray cluster http://head:8265: not reachable.")

    async def main():
        async with watching("x", wants_log=False) as watch:
            await until(lambda: watch.trouble)
            assert not watch.is_over
            head.error = None
            await until(lambda: watch.job is not None)
            assert not watch.trouble
            head.error = RayClusterError("Ray cluster http://head:8265: again.")
            monkeypatch.setattr(ray_job_poller, "OUTAGE_SECONDS", 0.0)
            await until(lambda: watch.is_over)
            assert watch.out_of_reach

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [RayClusterError("Ray cluster http://head:8265: no such log."), ZeroDivisionError()]
)
def test_a_log_that_cannot_be_read_disturbs_only_its_own_job(head, monkeypatch, error):
    head.jobs = {name: job(name) for name in ("odd", "good")}
    monkeypatch.setattr(head, "log_errors", {"odd": error})

    async def main():
        async with AsyncExitStack() as stack:
            odd, good = [
                await stack.enter_async_context(watching(name, wants_log=True))
                for name in ("odd", "good")
            ]
            await until(lambda: head.asked["odd"] and good.log is not None)
            assert list(good.log.newest.take("")) == ["good says"]
            assert (good.trouble, good.log_trouble, good.broken) == ("", "", None)
            assert odd.broken is (error if isinstance(error, ZeroDivisionError) else None)

    asyncio.run(main())


def test_an_unexpected_error_ends_the_wait_of_all_triggers(head):
    head.error = ZeroDivisionError()

    async def main():
        async with watching("x", wants_log=False) as watch:
            await until(watch.changed.is_set)
            assert isinstance(watch.broken, ZeroDivisionError)

    asyncio.run(main())
