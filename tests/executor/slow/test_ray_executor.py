"""What goes wrong around RayExecutor, on the oldest, this and the newest Airflow: nothing runs twice.

A real Ray head with token authentication, and a real Airflow whose scheduler can die alone. They share no
folder of logs, and the nodes have no database.
"""

import base64
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.matrix.environments import NEWEST_AIRFLOW, OLDEST_AIRFLOW, airflow_python
from tests.support.airflow import workload_tokens
from tests.support.airflow.on_ray import CLASS, OnRay, airflow_on_ray
from tests.support.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.airflow, pytest.mark.ray]

HEALTHY_SECONDS = 12.0
"""After so long without a heartbeat, a scheduler of these tests counts as dead."""


@pytest.fixture(scope="module", params=[OLDEST_AIRFLOW, "this", NEWEST_AIRFLOW])
def site(request, tmp_path_factory) -> Iterator[OnRay]:
    python = sys.executable if request.param == "this" else airflow_python(request.param)
    home = tmp_path_factory.mktemp("airflow")
    with airflow_on_ray(home, python=python, AIRFLOW__RAY_EXECUTOR__DELETE_JOBS="False") as running:
        yield running


@pytest.fixture
def begin(site, tmp_path):
    """Start a run of a DAG, in a directory of its own."""
    numbers = itertools.count()
    return lambda dag_id, **given: site.begin(dag_id, tmp_path / str(next(numbers)), **given)


def test_needs_and_variables_reach_the_job_and_other_executors_run_beside(site, begin):
    run = begin("beside")
    assert run.finish() == {"on_ray": ["success"], "local": ["success"], "fails": ["failed"]}
    assert site.airflow.xcom("beside", run.id, "local", "return_value") == "Hello"
    assert [run.lines(name) for name in ("on_ray", "local", "fails")] == [["ran"]] * 3
    site.wait_for_ends(run.jobs())
    assert list(run.jobs().values()) == ["SUCCEEDED"] * 2
    actors = site.cluster.call("/api/v0/actors?detail=true")["data"]["result"]["result"]
    of_jobs = [
        each["required_resources"]
        for each in actors
        if any(id_ in each["name"] for id_ in run.jobs())
    ]
    needed = {"CPU": 0.25, "memory": 200 * 1024**2, "node:__internal_head__": 0.001}
    assert needed in of_jobs
    assert {"CPU": 0.5} in of_jobs


def test_mapped_tasks_take_turns_where_slots_are_few(begin):
    run = begin("mapped")
    assert run.finish() == {"square": ["success"] * 6}
    times = [tuple(map(float, line.split())) for line in run.lines("square")]
    assert len(times) == 6
    at_once = [sum(begun <= moment < ended for begun, ended in times) for moment, _ in times]
    assert max(at_once) <= 4


def test_a_deferred_task_goes_on_in_a_second_job_of_the_same_try(site, begin):
    site.airflow.start_triggerer()
    run = begin("defers")
    assert run.finish() == {"deferring": ["success"]}
    assert run.lines("deferring") == ["ran"]
    assert len(run.lines("resumed")) == 1
    assert run.task("deferring")["try_number"] == 1
    site.wait_for_ends(run.jobs())
    assert list(run.jobs().values()) == ["SUCCEEDED"] * 2


def test_the_log_is_shown_while_the_task_runs(site, begin):
    run = begin("waits")
    run.wait_for_line("waiting")
    site.airflow.eventually(lambda: "tick 1" in run.log("waiting"))
    run.go_on()
    assert run.finish() == {"waiting": ["success"]}


def test_the_token_of_a_task_is_shown_nowhere(site, begin):
    run = begin("waits")
    run.wait_for_line("waiting")
    task = run.task("waiting")["id"]
    job = run.wait_for_job("RUNNING")
    assert workload_tokens.processes_with_token(task) == []
    assert workload_tokens.files_with_token(site.cluster.scratch, task) == []
    assert workload_tokens.files_with_token(site.airflow.home, task) == []
    for path in (
        "/api/jobs/",
        f"/api/jobs/{job}",
        f"/api/jobs/{job}/logs",
        "/api/v0/actors?detail=true",
        "/api/v0/runtime_envs?detail=true",
        "/api/v0/workers?detail=true",
    ):
        assert not workload_tokens.has_token(json.dumps(site.cluster.call(path)).encode(), task), (
            path
        )
    run.go_on()
    assert run.finish() == {"waiting": ["success"]}


def test_a_token_that_is_shown_would_be_found(tmp_path):
    """What the test above looks with."""
    claims = (
        base64.urlsafe_b64encode(json.dumps({"sub": "this-task"}).encode()).decode().rstrip("=")
    )
    token = f"eyJhbGciOiJIUzI1NiJ9.{claims}.c2lnbmF0dXJl"
    (tmp_path / "log").write_text(f"token={token}\n")
    assert workload_tokens.files_with_token(tmp_path, "this-task") == [tmp_path / "log"]
    assert workload_tokens.files_with_token(tmp_path, "another") == []
    sleeping = subprocess.Popen(["sleep", "60"], env={**os.environ, "TOKEN": token})
    try:
        assert workload_tokens.processes_with_token("this-task") == [sleeping.pid]
    finally:
        sleeping.kill()
        sleeping.wait()


def test_the_cluster_refuses_whoever_has_no_token(site):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{site.cluster.address}/api/jobs/", timeout=PATIENCE_SECONDS)
    assert refused.value.code == 401


def test_a_wrong_token_fails_the_task_and_the_log_has_the_reason(site, begin):
    with site.airflow.scheduler_with(AIRFLOW__RAY_EXECUTOR__TOKEN="wrong" * 12):
        run = begin("waits")
        assert run.finish() == {"waiting": ["failed"]}
        assert begin("only_local").finish() == {"beside_the_cluster": ["success"]}
    assert run.lines("waiting") == []
    about = [line for line in site.airflow.log().splitlines() if run.id in line and "token" in line]
    assert about
    assert "Traceback" not in "".join(about)


def test_an_unknown_key_fails_the_task_at_once_and_the_user_sees_why(site, begin):
    run = begin("wrong_key")
    assert run.finish() == {"wrong": ["failed"]}
    assert run.lines("wrong") == []
    assert run.jobs() == {}
    events = site.airflow.call("GET", "/api/v2/eventLogs?dag_id=wrong_key")
    assert "cpus" in run.log("wrong") + json.dumps(events)


def test_a_killed_scheduler_leaves_its_task_to_the_next(site, begin):
    run = begin("waits")
    run.wait_for_line("waiting")
    with site.adoption((run, "waiting")):
        site.airflow.kill_scheduler()
    check_it_ran_once(run)


def test_a_scheduler_that_is_told_to_end_leaves_its_task_to_the_next(site, begin):
    run = begin("waits")
    run.wait_for_line("waiting")
    with site.adoption((run, "waiting")):
        begun = time.monotonic()
        site.airflow.terminate_scheduler()
        assert time.monotonic() - begun < 60
    check_it_ran_once(run)


def test_a_killed_scheduler_leaves_a_job_that_waits_to_the_next(site, begin):
    running, waiting = begin("waits"), begin("needs_a_node")
    running.wait_for_line("waiting")
    waiting_job = waiting.wait_for_job("PENDING")
    with site.adoption((running, "waiting"), (waiting, "placed")):
        site.airflow.kill_scheduler()
    running.go_on()
    with site.late_node():
        assert waiting.finish() == {"placed": ["success"]}
        site.wait_for_ends([waiting_job])
    assert waiting.lines("placed") == ["ran"]
    assert waiting_job in waiting.jobs()
    assert running.finish() == {"waiting": ["success"]}
    assert running.lines("waiting") == ["ran"]
    site.wait_for_ends(running.jobs())
    assert list(running.jobs().values()) == ["SUCCEEDED"] * 2


def test_a_task_that_is_marked_failed_ends_its_job(site, begin):
    run = begin("waits")
    run.wait_for_line("waiting")
    job = run.wait_for_job("RUNNING")
    site.airflow.mark_failed("waits", run.id, "waiting")
    site.airflow.eventually(lambda: run.jobs().get(job) not in ("PENDING", "RUNNING"))
    assert run.finish() == {"waiting": ["failed"]}
    assert run.lines("waiting") == ["ran"]


def test_a_task_that_is_marked_failed_before_its_job_has_a_place_never_runs(site, begin):
    runs = [begin("needs_a_node") for _ in range(4)]  # all slots
    for run in runs:
        site.airflow.eventually(lambda run=run: run.task("placed")["state"] == "queued")
    site.airflow.eventually(lambda: len(runs[0].jobs()) == 4)
    for run in runs:
        site.airflow.mark_failed("needs_a_node", run.id, "placed")
    beside = begin("waits")  # needs a slot
    beside.go_on()
    assert beside.finish() == {"waiting": ["success"]}
    with site.late_node():
        site.wait_for_ends(runs[0].jobs())
    assert [run.lines("placed") for run in runs] == [[]] * 4


def test_a_task_that_is_cleared_before_its_job_has_a_place_runs_once(site, begin):
    run = begin("needs_a_node")
    first = run.wait_for_job("PENDING")
    site.airflow.clear("needs_a_node", run.id, "placed")
    site.airflow.eventually(lambda: set(run.jobs()) - {first})
    with site.late_node():
        assert run.finish() == {"placed": ["success"]}
        site.wait_for_ends(run.jobs())
    assert run.lines("placed") == ["ran"]


def test_a_head_that_is_lost_fails_its_tasks_and_the_next_ones_succeed(site, begin):
    run = begin("waits")
    run.wait_for_line("waiting")
    site.cluster.end()
    site.restart_head()
    assert run.finish() == {"waiting": ["failed"]}
    assert site.airflow.scheduler.poll() is None
    assert run.lines("waiting") == ["ran"]
    check_it_ran_once(begin("waits"))


def test_a_silent_cluster_stops_neither_the_scheduler_nor_other_executors(site, begin):
    followed = begin("waits")
    followed.wait_for_line("waiting")
    earlier = site.jobs()
    with site.cluster.silenced():
        submitted = begin("waits", earlier=earlier)
        site.airflow.eventually(lambda: submitted.task("waiting")["state"] == "queued")
        deadline = time.monotonic() + 2 * HEALTHY_SECONDS
        while time.monotonic() < deadline:
            assert site.airflow.is_healthy("scheduler")
            time.sleep(1)
        local = begin("only_local", earlier=earlier)
        assert local.finish() == {"beside_the_cluster": ["success"]}
    for run in (followed, submitted):
        run.go_on()
        assert run.finish() == {"waiting": ["success"]}
        assert run.lines("waiting") == ["ran"]


def test_a_scheduler_starts_without_its_cluster(site, begin):
    site.airflow.terminate_scheduler()
    site.cluster.end()
    site.airflow.start_scheduler()
    local = begin("only_local", earlier=())
    assert local.finish() == {"beside_the_cluster": ["success"]}
    run = begin("waits", earlier=())
    site.airflow.eventually(lambda: run.task("waiting")["state"] == "queued")
    site.restart_head()
    check_it_ran_once(run)


@pytest.mark.parametrize(
    "variables",
    [
        {"AIRFLOW__CORE__EXECUTOR": CLASS},
        {"AIRFLOW__CORE__EXECUTOR": f"LocalExecutor,{CLASS}"},
        {
            "AIRFLOW__RAY_EXECUTOR__RAY_CONN_ID": "ray_jobs_default",
            "AIRFLOW__RAY_EXECUTOR__ADDRESS": "",
            "AIRFLOW__RAY_EXECUTOR__TOKEN": "",
        },
    ],
    ids=["alone", "without an alias", "ray_conn_id"],
)
def test_other_configurations(site, begin, variables):
    site.airflow.connect("ray_jobs_default", site.cluster.connection)
    with site.airflow.all_with(**variables):
        run = begin("waits")
        run.wait_for_line("waiting")
        site.airflow.eventually(lambda: "tick 1" in run.log("waiting"))
        with site.adoption((run, "waiting")):
            site.airflow.kill_scheduler()
        check_it_ran_once(run)
        beside = begin("beside")
        assert beside.finish() == {"on_ray": ["success"], "local": ["success"], "fails": ["failed"]}


def check_it_ran_once(run) -> None:
    """Let the task of `waits` end, and check that it ran in one job and on its first try."""
    run.go_on()
    assert run.finish() == {"waiting": ["success"]}, run.site.airflow.log_tail()
    assert run.lines("waiting") == ["ran"]
    assert run.task("waiting")["try_number"] == 1
    assert len(run.jobs()) == 1
