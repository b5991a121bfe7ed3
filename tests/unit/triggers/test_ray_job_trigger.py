"""One trigger: its output while it waits, when it fires, and which job it stops."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.jobs_api import RayJob
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.triggers import ray_job, ray_job_poller, trial_poller
from airflow_tune_restore.triggers.ray_job import RayJobTrigger
from airflow_tune_restore.triggers.shared_poller import SharedPoller
from tests.support.airflow.names import RELEASE, before_3_3, since_3_3
from tests.support.records import Attempt, leave_outcome
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def head(monkeypatch):
    """Stands in for the cluster."""

    class Head:
        status = "RUNNING"
        said = ""
        stopped: list  # of submission ids
        log_error: Exception | None = None
        lists = looks = logs = 0

        def __init__(self, cluster=None):
            pass

        async def list_all(self):
            Head.lists += 1
            return [RayJob(submission_id="j1", status=Head.status)] if Head.status else []

        async def read_log(self, submission_id, log):
            Head.logs += 1
            if Head.log_error is not None:
                raise Head.log_error
            log.take(Head.said)

        async def close(self):
            pass

        def stop(self, submission_id):
            Head.stopped.append(submission_id)

    Head.stopped = []
    look = trial_poller.TrialPoller._round

    async def counted(watch):
        await look(watch)
        Head.looks += 1

    monkeypatch.setattr(trial_poller.TrialPoller, "_round", counted)
    monkeypatch.setattr(ray_job_poller, "AsyncRayJobs", Head)
    monkeypatch.setattr(RayJobsHook, "cluster", lambda self: Cluster(address="http://head:8265"))
    monkeypatch.setattr(RayJobsHook, "jobs", lambda self: Head())
    monkeypatch.setattr(ray_job, "FIRST_EVENT_SECONDS", 0.0)
    monkeypatch.setattr(trial_poller, "ROUND_SECONDS", 0.02)
    return Head


@pytest.fixture
def store(tmp_path):
    opened = open_store(str(tmp_path))
    lease.acquire(opened, restore_id="r1", holder="test", ttl_seconds=60)
    return opened


def trigger(store, **arguments) -> RayJobTrigger:
    return RayJobTrigger(
        ray_conn_id="ray",
        submission_id="j1",
        experiment=store.uri.removeprefix("file://"),
        restore_id="r1",
        trial_id="t1",
        attempt=1,
        poll_interval=0.02,
        **arguments,
    )


def report(store, *iterations: int, first: int = 0) -> None:
    reports = [RunnerProgress(trial_id="t1", iteration=i, metrics={"a": i}) for i in iterations]
    key = layout.progress_key("r1", "t1", 1)
    store.put(key, ProgressTail(first=first, reports=reports).to_json())


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def look_twice(head) -> None:
    """Wait until cluster and storage were looked at once more, from beginning to end."""
    lists, looks = head.lists + 2, head.looks + 2
    await until(lambda: head.lists >= lists and head.looks >= looks)


def fire(head, one: RayJobTrigger, step, *, after=lambda: True) -> dict:
    """Run a trigger, and the step when it has looked at everything and `after` is true."""

    async def main():
        async def first():
            return await anext(event.payload async for event in one.run())

        task = asyncio.create_task(first())
        await look_twice(head)
        await until(after)
        assert not task.done()
        step()
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await task

    return asyncio.run(main())


def test_it_shows_what_happens_and_fires_at_the_end(head, store, capfd):
    head.said = "setting up\n" + RunnerProgress(trial_id="t1", iteration=1, metrics={}).to_line()
    report(store, 1, 2)
    said = []

    def has_shown() -> bool:
        said.append(capfd.readouterr().out)
        return all(text in "".join(said) for text in ("setting up", "iteration 2, a=2"))

    event = fire(
        head, trigger(store, metric="a"), lambda: setattr(head, "status", "FAILED"), after=has_shown
    )
    log = "".join(said) + capfd.readouterr().out
    assert log.count("setting up") == 1
    assert log.count("iteration 1, a=1") == 1
    assert "iteration 2, a=2" in log
    assert event == {
        "restore_id": "r1",
        "attempt": 1,
        "offset": len("setting up\n"),
        "seen": 2,
        "is_lost": False,
        "trouble": "",
    }


def test_results_that_were_missed_are_left_for_the_end(head, store, capfd):
    report(store, 7, 8, first=6)
    event = fire(head, trigger(store), lambda: setattr(head, "status", "SUCCEEDED"))
    assert event["seen"] == 0
    assert "iteration" not in capfd.readouterr().out


def test_a_lost_job_is_reported(head, store):
    event = fire(head, trigger(store), lambda: setattr(head, "status", ""))
    assert event["is_lost"]


def test_in_a_whole_experiment_run_it_fires_with_the_end_of_its_trial(head, store):
    def end():
        report(store, 1)
        leave_outcome(store, Attempt("r1", "t1"))

    event = fire(head, trigger(store, is_one_of_many=True, ends_with_job=False), end)
    assert (event["seen"], event["is_lost"]) == (1, False)


@pytest.mark.parametrize("is_one_of_many", [False, True])
def test_killing_stops_the_job_or_in_a_whole_experiment_run_the_trial(
    head, store, monkeypatch, is_one_of_many
):
    store.put(layout.request_key("r1", layout.WHOLE_EXPERIMENT, 1), b"{}")
    killed = trigger(store, is_one_of_many=is_one_of_many)
    monkeypatch.setattr(killed, "_still_waits", lambda: True)
    asyncio.run(killed.on_kill())
    assert head.stopped == []
    monkeypatch.setattr(killed, "_still_waits", lambda: False)
    asyncio.run(killed.on_kill())
    assert head.stopped == ([] if is_one_of_many else ["j1"])
    assert len(store.list_dir(layout.stops_dir("r1", 1))) == is_one_of_many


def test_the_event_of_a_shared_driver_names_it(head, store):
    one = trigger(store, is_one_of_many=True, ends_with_job=False, driver=3)
    event = fire(head, one, lambda: leave_outcome(store, Attempt("r1", "t1")))
    assert (event["attempt"], event["driver"]) == (1, 3)


@pytest.mark.parametrize("shows_output", [True, False])
def test_what_a_trial_prints_in_a_shared_driver_is_shown_once(head, store, capfd, shows_output):
    """Whoever shows the output of the driver has it there."""
    tail = ProgressTail(first=0, reports=[], lines=["it said this"])
    store.put(layout.progress_key("r1", "t1", 1), tail.to_json())
    one = trigger(
        store, is_one_of_many=True, ends_with_job=False, driver=3, shows_output=shows_output
    )
    event = fire(head, one, lambda: leave_outcome(store, Attempt("r1", "t1")))
    assert event["lines"] == 1
    assert ("it said this" in capfd.readouterr().out) is not shows_output


def test_killing_one_that_shares_a_driver_stops_it_alone(head, store, monkeypatch, capfd):
    killed = trigger(store, is_one_of_many=True, driver=3)
    monkeypatch.setattr(killed, "_still_waits", lambda: False)
    asyncio.run(killed.on_kill())
    assert head.stopped == []
    assert Desk(store, "r1").read().to_stop == {("r1", "t1", 1)}
    assert "Asking the shared driver to stop this trial" in capfd.readouterr().out


def test_hundreds_that_share_a_job_ask_for_it_together(head, store, monkeypatch):
    """Requests to the head, and what it must hold, do not grow with the tasks."""
    ended = []

    async def main():
        async def wait():
            one = trigger(store, is_one_of_many=True, ends_with_job=False, driver=1)
            ended.append(await anext(event.payload async for event in one.run()))

        tasks = [asyncio.create_task(wait()) for _ in range(200)]
        await look_twice(head)
        assert len(SharedPoller._all) == 2  # one of the cluster, one of the restore
        leave_outcome(store, Attempt("r1", "t1"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(ended) == 200


def cancel(head, waiting) -> None:
    """End a trigger that waits, as a triggerer does: when it ends itself, or when the task is killed."""

    async def main():
        async def first():
            return await anext(event.payload async for event in waiting.run())

        task = asyncio.create_task(first())
        await look_twice(head)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await waiting.cleanup()

    asyncio.run(main())


@pytest.fixture
def of_task(store, monkeypatch):
    """Makes a trigger of a task that Airflow knows in a state; without one it cannot be asked."""

    def make(state):
        def get_task_states(**_arguments):
            if state is None:
                raise ConnectionError("the triggerer ends")
            return {"run": {"trial": state}}

        monkeypatch.setattr(
            "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states",
            get_task_states,
        )
        made = trigger(store)
        made.task_instance = SimpleNamespace(
            dag_id="d", task_id="trial", run_id="run", map_index=-1
        )
        return made

    return make


def test_ending_with_the_triggerer_stops_nothing(head, of_task):
    cancel(head, of_task("deferred"))
    assert head.stopped == []


@before_3_3
@pytest.mark.parametrize("state", ["failed", "success", "None", "scheduled", "removed"])
def test_a_trigger_whose_task_no_longer_waits_stops_its_job_when_it_ends(head, of_task, state):
    cancel(head, of_task(state))
    assert head.stopped == ["j1"]


@before_3_3
def test_a_trigger_that_cannot_ask_about_its_task_stops_nothing(head, of_task, capfd):
    cancel(head, of_task(None))
    assert head.stopped == []
    assert (
        "j1 continues: Airflow could not be asked whether the task still waits"
        in capfd.readouterr().out
    )


@pytest.mark.parametrize("end", [RayJobTrigger.on_kill, RayJobTrigger.cleanup])
def test_a_job_that_cannot_be_stopped_is_named(head, of_task, end, monkeypatch, capfd):
    def refuse(self, _address):
        raise InvalidInputError("Airflow has no connection 'gone'.")

    monkeypatch.setattr(ExperimentStorageHook, "open", refuse)
    asyncio.run(end(of_task("failed")))
    is_asked = end is RayJobTrigger.on_kill or RELEASE < (3, 3)
    shown = "j1 could not be stopped: Airflow has no connection 'gone'." in capfd.readouterr().out
    assert shown is is_asked


@before_3_3
def test_an_unexpected_error_of_a_stop_is_logged(head, of_task, monkeypatch, capfd):
    monkeypatch.setattr(RayJobTrigger, "_stop", lambda self: 1 / 0)
    asyncio.run(of_task("failed").cleanup())
    assert "on_kill() raised an exception" in capfd.readouterr().out


@before_3_3
def test_a_trigger_that_has_fired_stops_nothing(head, of_task):
    fired = of_task("scheduled")
    fire(head, fired, lambda: setattr(head, "status", "SUCCEEDED"))
    asyncio.run(fired.cleanup())
    assert head.stopped == []


@since_3_3
def test_cleanup_stops_nothing_where_airflow_tells_a_trigger_that_its_task_was_killed(
    head, of_task
):
    cancel(head, of_task("failed"))
    assert head.stopped == []


def test_a_flood_is_shown_in_turns_and_its_end_is_not_left_out(head, store, capfd, monkeypatch):
    """Counted: lines of one look, and lines between two turns of the event loop."""
    flood = [f"line {number}" for number in range(100_000)]
    results = [RunnerProgress(trial_id="t1", iteration=i, metrics={}).to_line() for i in (1, 2)]
    head.said = "\n".join([results[0], *flood, results[1], "the end"]) + "\nhalf a li"
    one = trigger(store)
    logged, turns = [], []

    async def turn(seconds, sleep=asyncio.sleep):
        if seconds == 0:
            turns.append(len(logged))
        await sleep(seconds)

    monkeypatch.setattr(ray_job.asyncio, "sleep", turn)
    monkeypatch.setattr(
        type(one), "log", SimpleNamespace(info=lambda form, *words: logged.append(form % words))
    )
    event = fire(
        head, one, lambda: setattr(head, "status", "FAILED"), after=lambda: "the end" in logged
    )
    assert event["offset"] == len(head.said) - len("half a li")
    command = "ray job logs --address http://head:8265 j1"
    assert logged[0] == f"… 99,001 lines left out here; the whole log: {command}"
    assert logged[1:1001] == [*flood[-999:], "the end"]
    assert logged[1001:] == [f"The rest is shown when the job has ended; now: {command}"]
    gaps = [b - a for a, b in itertools.pairwise([0, *turns, len(logged)])]
    assert max(gaps) <= ray_job.LINES_PER_TURN


def test_a_long_log_is_not_asked_for_again(head, store, monkeypatch):
    monkeypatch.setattr(ray_job_poller, "LONGEST_LOG", 100)
    head.said = "a line\n" * 100
    event = fire(
        head, trigger(store), lambda: setattr(head, "status", "FAILED"), after=lambda: head.logs
    )
    assert head.logs == 1
    assert event["offset"] == len(head.said)


def test_a_log_that_cannot_be_read_is_reported_once_and_decides_nothing(head, store, monkeypatch):
    head.log_error = RayClusterError(
        "Ray cluster http://head:8265: HTTP 200 with Content-Encoding gzip."
    )
    monkeypatch.setattr(ray_job_poller, "OUTAGE_SECONDS", 0.0)
    one, warned = trigger(store), []
    monkeypatch.setattr(
        type(one), "log", SimpleNamespace(warning=lambda form, *words: warned.append(form % words))
    )
    event = fire(
        head, one, lambda: setattr(head, "status", "SUCCEEDED"), after=lambda: head.logs >= 3
    )
    assert event["trouble"] == ""
    (warning,) = warned
    assert warning.endswith("HTTP 200 with Content-Encoding gzip. The log is read again.")


# the window


@pytest.mark.parametrize(
    ("of_many", "driver", "unit"),
    [(False, 0, "t1"), (True, 0, layout.WHOLE_EXPERIMENT), (True, 2, layout.SHARED_DRIVER)],
)
def test_at_the_end_of_the_window_it_stops_a_job_that_still_waits_and_fires(
    head, store, of_many, driver, unit
):
    head.status = "PENDING"
    soon = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
    kind = {"is_one_of_many": of_many, "ends_with_job": not of_many, "driver": driver}
    one = trigger(store, **kind, stop_at=soon)

    async def main():
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await anext(event.payload async for event in one.run())

    event = asyncio.run(main())
    assert (event["attempt"], event["is_lost"], event["trouble"]) == (1, False, "")
    assert head.stopped == ["j1"]
    store.get(layout.stopped_key("r1", unit, driver or 1))


def test_a_trigger_of_an_older_version_stops_nothing(store):
    _, arguments = trigger(store).serialize()
    del arguments["stop_at"], arguments["driver"]
    old = RayJobTrigger(**arguments)
    assert (old.stop_at, old.driver) == ("", 0)
