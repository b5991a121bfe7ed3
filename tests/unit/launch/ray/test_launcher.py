"""Attempts as Ray jobs for a shell. The cluster is a fake."""

import threading
from dataclasses import replace

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.launch.base import RunState, follow
from airflow_tune_restore.launch.ray import launcher
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.jobs_api import ABSENT_LISTS, RayJob
from airflow_tune_restore.launch.ray.launcher import RayLauncher
from airflow_tune_restore.launch.ray.submission import DriverResources
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import start_night
from tests.support.waiting import eventually, set_time

REPORTS = [RunnerProgress(trial_id="a3", iteration=i, metrics={}).to_line() for i in range(1, 4)]


@pytest.fixture
def store(tmp_path):
    return open_store(str(make_experiment(tmp_path / "exp", [make_row("a3", status="ERROR")])))


@pytest.fixture
def jobs(monkeypatch):
    fake = FakeJobs()
    monkeypatch.setattr(launcher, "RayJobs", lambda cluster: fake)
    set_time(monkeypatch, "sleep", lambda seconds: None)
    return fake


@pytest.fixture
def ray(jobs):
    return RayLauncher(
        cluster=Cluster(address="http://head:8265", token="t0ken"),
        runtime_env={"pip": ["x"]},
        env={"MINE": "1"},
        driver=DriverResources(num_cpus=2.0),
        poll_seconds=0.0,
    )


@pytest.fixture
def request_(store, ray):
    settings = ray.settings(RunnerSettings(trainable="a:b"))
    return claim_attempt(store, start_night(store), "a3", settings)


def test_its_runners_join_the_cluster_they_run_on(ray):
    settings = ray.settings(RunnerSettings(trainable="a:b", imports=["mine"]))
    assert (settings.address, settings.can_grow) == ("auto", True)
    assert (settings.trainable, settings.imports) == ("a:b", ["mine"])


@pytest.mark.parametrize(
    "runtime_env", [{"working_dir": "/nonexistent"}, {"working_dir": __file__}, {"env_vars": [1]}]
)
def test_code_that_cannot_be_sent_is_refused_before_an_attempt_is_claimed(ray, runtime_env):
    with pytest.raises(InvalidInputError, match="in the runtime_env"):
        replace(ray, runtime_env=runtime_env).settings(RunnerSettings(trainable="a:b"))


def test_an_attempt_is_submitted_once_and_found_by_its_request(ray, jobs, request_):
    assert ray.find(request_) is None
    ray.start(request_)
    ray.start(request_)
    (posted,) = jobs.posted
    assert posted["runtime_env"]["pip"] == ["x"]
    assert posted["runtime_env"]["env_vars"]["MINE"] == "1"
    assert posted["entrypoint_num_cpus"] == 2.0
    assert ray.find(request_).submission_id == posted["submission_id"]


def test_a_run_is_followed_to_its_end(ray, jobs, request_):
    first = f"setting up\n{REPORTS[0]}\ntraining\n{REPORTS[1]}\nhalf a li"
    outputs = [first, f"{first}ne\n", f"{first}ne\n{REPORTS[2]}\nbye"]
    run = ray.start(request_)
    read_log = jobs.read_log

    def grow(name, log):
        jobs.output = outputs.pop(0)
        if len(outputs) == 1:
            jobs.end("FAILED", driver_exit_code=1)
        read_log(name, log)

    jobs.read_log = grow
    shown: list[str] = []
    ended = follow(run, shown.append)
    assert shown == [
        "setting up",
        REPORTS[0],
        "training",
        REPORTS[1],
        "half a line",
        REPORTS[2],
        "bye",
    ]
    assert ended.exit_code == 1
    assert ended.message.splitlines()[-2:] == ["iteration 3", "bye"]


def test_a_pending_job_waits(ray, jobs, request_):
    jobs.first_status = "PENDING"
    run = ray.start(request_)
    jobs.output = "Runtime env is setting up.\n"
    assert run.poll() is RunState.WAITING
    assert list(run.output()) == []
    for name in jobs.jobs:
        jobs.jobs[name] = RayJob(submission_id=name, status="RUNNING")
    assert run.poll() is RunState.RUNNING
    assert list(run.output()) == ["Runtime env is setting up."]


def test_a_long_log_is_read_less_often(ray, jobs, request_, monkeypatch):
    monkeypatch.setattr(launcher, "LONGEST_LOG", 10)
    run = ray.start(request_)
    jobs.output = "a line\n" * 100
    run.poll()
    assert list(run.output()) == ["a line"] * 100
    jobs.output += "one more\n"
    run.poll()
    assert list(run.output()) == []
    jobs.end()
    run.poll()
    assert list(run.output()) == ["one more"]


def test_a_job_that_the_cluster_no_longer_has_has_ended(ray, jobs, request_):
    run = ray.start(request_)
    assert run.poll() is RunState.RUNNING
    jobs.jobs.clear()
    states = [run.poll() for _ in range(ABSENT_LISTS)]
    assert states == [RunState.RUNNING] * (ABSENT_LISTS - 1) + [RunState.ENDED]
    ended = run.exit()
    assert ended.exit_code is None
    assert "head node died" in ended.message


@pytest.mark.parametrize(
    "trouble", [RayClusterError("Ray cluster: not reachable."), InvalidInputError("not Ray")]
)
def test_an_outage_is_waited_for_and_then_raised(ray, jobs, request_, monkeypatch, trouble, caplog):
    run = ray.start(request_)
    find = jobs.find

    def fail(name):
        raise trouble

    monkeypatch.setattr(jobs, "find", fail)
    jobs.log_error = trouble
    assert run.poll() is RunState.WAITING
    assert "if the job still runs, it is not affected" in caplog.text
    monkeypatch.setattr(jobs, "find", find)
    assert run.poll() is RunState.RUNNING
    assert list(run.output()) == []
    monkeypatch.setattr(jobs, "find", fail)
    monkeypatch.setattr(launcher, "OUTAGE_SECONDS", 0.0)
    with pytest.raises(type(trouble)):
        run.poll()


def test_an_outage_is_logged_once_until_its_text_changes(ray, jobs, request_, monkeypatch, caplog):
    run, find, outage = ray.start(request_), jobs.find, ["HTTP 503"]
    run.poll()

    def fail(name):
        raise RayClusterError(f"Ray cluster: {outage[0]}.")

    def poll(times):
        """Return the warnings of some polls."""
        caplog.clear()
        for _ in range(times):
            run.poll()
            assert list(run.output()) == []
        return [message.partition(".")[0] for message in caplog.messages]

    monkeypatch.setattr(jobs, "find", fail)
    jobs.log_error = RayClusterError("The log: HTTP 503.")
    assert poll(5) == ["Ray cluster: HTTP 503", "The log: HTTP 503"]
    outage[0] = "not reachable"
    assert poll(5) == ["Ray cluster: not reachable"]
    monkeypatch.setattr(jobs, "find", find)
    jobs.log_error = None
    assert poll(2) == []
    monkeypatch.setattr(jobs, "find", fail)
    assert poll(2) == ["Ray cluster: not reachable"]


def test_stopping_records_the_stop_and_waits_for_the_snapshot(ray, jobs, request_, store):
    run = ray.start(request_)
    assert run.poll() is RunState.RUNNING
    store.put(layout.heartbeat_key("r1", "a3", 1), b"{}")
    stopping = threading.Thread(target=run.stop)
    stopping.start()
    eventually(lambda: jobs.stopped)
    assert store.get(layout.stopped_key("r1", "a3", 1))
    assert stopping.is_alive()
    assert run.poll() is RunState.RUNNING
    jobs.end("STOPPED", message="Job was intentionally stopped.")
    stopping.join()
    assert run.poll() is RunState.ENDED
    assert run.exit().message == "Ray reports STOPPED. Job was intentionally stopped."


def test_stopping_a_job_that_waits_for_resources_does_not_wait(ray, jobs, request_):
    jobs.first_status = "PENDING"
    run = ray.start(request_)
    run.stop()
    assert jobs.stopped == [run.submission_id]
    assert run.poll() is RunState.ENDED


def test_stopping_while_the_cluster_is_out_of_reach_shows_how_to_stop_it(
    ray, jobs, request_, monkeypatch, caplog
):
    run = ray.start(request_)

    def fail(name):
        raise RayClusterError("Ray cluster http://head:8265: not reachable.")

    monkeypatch.setattr(jobs, "stop", fail)
    run.stop()
    assert f"ray job stop --address http://head:8265 {run.submission_id}" in caplog.text
    assert run.poll() is RunState.ENDED
