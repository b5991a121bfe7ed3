"""`RayExecutor` between Airflow's own `BaseExecutor` and a stand-in for the cluster's dashboard.

The database of tasks is stood in for, too. `tests/executor` has real schedulers and a real cluster.
"""

import uuid
from types import SimpleNamespace

import pytest
from airflow.executors import workloads
from airflow.utils.state import TaskInstanceState

from airflow_tune_restore.executors import job_follower, patient_ray_jobs, ray_executor
from airflow_tune_restore.executors.ray_executor import RayExecutor
from airflow_tune_restore.version_compat import key_of_task
from tests.support.ray.jobs_server import TOKEN, jobs_server
from tests.support.waiting import eventually

SECRET = "eyJhbGciOi.secret.token"
DTO = getattr(workloads, "TaskInstanceDTO", None) or workloads.TaskInstance


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(patient_ray_jobs, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(job_follower, "DELETE_SECONDS", 0.1)
    monkeypatch.setattr(ray_executor, "_find_wanted", set)  # all of them
    with jobs_server() as running:
        monkeypatch.setenv("AIRFLOW__RAY_EXECUTOR__ADDRESS", running.address)
        monkeypatch.setenv("AIRFLOW__RAY_EXECUTOR__TOKEN", TOKEN)
        monkeypatch.setenv("AIRFLOW__RAY_EXECUTOR__POLL_INTERVAL", "0.1")
        monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
        yield running


@pytest.fixture
def make(server):
    made = []

    def executor(parallelism=4):
        executor = RayExecutor(parallelism=parallelism)
        executor.start()
        made.append(executor)
        return executor

    yield executor
    for executor in made:
        executor.end()


def task(task_id="t", executor_config=None, **fields):
    """A workload as the scheduler makes it; its id is committed since Airflow 3.2."""
    given = {
        "id": uuid.uuid4(), "dag_version_id": uuid.uuid4(), "task_id": task_id, "dag_id": "d",
        "run_id": "r", "try_number": 1, "map_index": -1, "pool_slots": 1, "queue": "default",
        "priority_weight": 1, "executor_config": executor_config or {},
        "external_executor_id": str(uuid.uuid4()), **fields,
    }  # fmt: skip
    return workloads.ExecuteTask(
        ti=DTO(**given), dag_rel_path="d.py", bundle_info={"name": "b", "version": None},
        log_path="l", token=SECRET,
    )  # fmt: skip


def queued(executor, *items):
    """Queue workloads as the scheduler does, and let it take the events once."""
    for item in items:
        executor.queue_workload(item, session=None)
    executor.heartbeat()
    events = executor.get_event_buffer()
    executor.heartbeat()
    return events


def row(item, state=TaskInstanceState.RUNNING, executor_id=None):
    """Stands in for the row of a task that a new scheduler finds."""
    return SimpleNamespace(
        id=item.ti.id,
        key=item.ti.key,
        state=state,
        **{name: getattr(item.ti, name) for name in ray_executor._METADATA},
        external_executor_id=executor_id or getattr(item.ti, "external_executor_id", None),
    )


def next_event(executor):
    def event():
        executor.sync()
        return executor.get_event_buffer()

    (found,) = eventually(event).values()
    return str(getattr(found[0], "value", found[0])), found[1]


def wait_for_end(executor, left=0):
    """Wait until a task has given its slot back: that it went well is not reported."""

    def ended():
        executor.sync()
        assert not executor.get_event_buffer()
        return len(executor.running) == left

    eventually(ended)


def job_of(server):
    """Wait for the only job and return it as it was submitted."""
    eventually(lambda: server.posted)
    (body,) = server.posted
    return body


def test_a_task_is_a_job_that_asks_for_what_the_task_needs(make, server):
    config = {"num_cpus": 2, "resources": {"spot": 1}, "runtime_env": {"env_vars": {"A": "1"}}}
    executor = make()
    queued(executor, task(executor_config=config))
    body = job_of(server)
    assert body["entrypoint_num_cpus"] == 2
    assert body["entrypoint_resources"] == {"spot": 1}
    assert body["metadata"] == {
        "dag_id": "d", "run_id": "r", "task_id": "t", "map_index": "-1", "try_number": "1",
    }  # fmt: skip
    variables = body["runtime_env"]["env_vars"]
    assert variables["A"] == "1"
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].endswith("/execution/")
    assert variables["AIRFLOW__CORE__EXECUTOR"]
    assert SECRET not in str(body)
    server.end_job(body["submission_id"])
    wait_for_end(executor)


def test_a_job_that_failed_fails_its_task(make, server):
    executor = make()
    queued(executor, task())
    server.end_job(job_of(server)["submission_id"], "FAILED", "no such image")
    state, problem = next_event(executor)
    assert state == "failed"
    assert "no such image" in problem


def test_an_unknown_key_fails_the_task_at_once_and_names_it(make, server, capfd):
    executor = make()
    events = queued(executor, task(executor_config={"cpus": 1}))
    ((_, problem),) = events.values()
    assert "unknown key cpus" in problem
    assert not executor.running
    assert not server.posted
    assert "task t of DAG d, run r, try 1: executor_config has" in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["ADDRESS", "TOKEN"])
def test_without_a_usable_section_each_task_fails_with_the_reason(make, monkeypatch, name):
    monkeypatch.setenv(f"AIRFLOW__RAY_EXECUTOR__{name}", "" if name == "ADDRESS" else "tok\nen")
    ((_, problem),) = queued(make(), task()).values()
    assert "[ray_executor]" in problem or "token" in problem


def test_slots_limit_how_many_jobs_there_are(make, server):
    executor = make(parallelism=2)
    queued(executor, *(task(f"t{number}") for number in range(4)))
    eventually(lambda: len(server.jobs) == 2)
    assert len(executor.running) == 2
    for job_id in list(server.jobs):
        server.end_job(job_id)

    def more():
        executor.heartbeat()
        executor.get_event_buffer()
        return len(server.posted) == 4

    eventually(more)


def test_no_job_is_submitted_before_its_id_is_committed(make, server):
    executor = make()
    item = task(external_executor_id=None)
    executor.queue_workload(item, session=None)
    executor.heartbeat()
    executor.sync()
    assert not executor._follower._submitting
    ((state, executor_id),) = executor.get_event_buffer().values()
    assert state == TaskInstanceState.QUEUED
    executor.sync()
    assert job_of(server)["submission_id"] == f"airflow-{executor_id}"


def test_a_task_that_was_deferred_goes_on_as_another_job(make, server):
    first, executor = task(), make()
    queued(executor, first)
    eventually(lambda: server.jobs)
    again = task(id=first.ti.id)
    queued(executor, again)
    eventually(lambda: len(server.jobs) == 2)
    old, new = (body["submission_id"] for body in server.posted)
    server.end_job(old)
    eventually(lambda: server.deleted == [old])
    executor.sync()
    assert not executor.get_event_buffer()
    assert executor.running
    server.end_job(new)
    wait_for_end(executor)


def test_the_next_scheduler_follows_the_jobs_of_the_last_one(make, server):
    last, runs, waits, never = make(), task("runs"), task("waits"), task("never")
    events = queued(last, runs, waits)
    eventually(lambda: len(server.jobs) == 2)
    ids = {key: info for key, (_, info) in events.items()}  # Airflow 3.1 commits these
    last.end()
    executor = make()
    rows = [
        row(runs, executor_id=ids.get(key_of_task(executor, runs.ti))),
        row(waits, TaskInstanceState.QUEUED, ids.get(key_of_task(executor, waits.ti))),
        row(never, TaskInstanceState.QUEUED, "5e1f"),
    ]
    assert executor.try_adopt_task_instances(rows) == [rows[2]]
    assert len(executor.running) == 2
    job_id = f"airflow-{rows[0].external_executor_id}"
    server.end_job(job_id)
    wait_for_end(executor, left=1)
    assert len(server.posted) == 2


def test_while_the_cluster_is_out_of_reach_all_tasks_are_adopted(make, server):
    server.broken = True
    executor, item = make(), task(external_executor_id="5e1f")
    assert executor.try_adopt_task_instances([row(item, executor_id="5e1f")]) == []
    server.jobs["airflow-5e1f"] = {"submission_id": "airflow-5e1f", "status": "SUCCEEDED"}
    server.broken = False
    wait_for_end(executor)


def test_without_a_usable_section_tasks_that_run_go_on_unfollowed(make, monkeypatch):
    monkeypatch.delenv("AIRFLOW__RAY_EXECUTOR__ADDRESS")
    runs = row(task(external_executor_id="1"), executor_id="1")
    waits = row(task(external_executor_id="2"), TaskInstanceState.QUEUED, "2")
    executor = make()
    assert executor.try_adopt_task_instances([runs, waits]) == [waits]
    executor.heartbeat()


def test_a_task_without_an_id_starts_anew(make):
    executor, item = make(), task(external_executor_id=None)
    assert executor.try_adopt_task_instances([row(item)]) == [row(item)]


def test_a_task_that_is_revoked_gives_its_slot_back_and_its_job_is_stopped(make, server):
    executor, item = make(), task()
    queued(executor, item)
    job_id = job_of(server)["submission_id"]
    executor.revoke_task(ti=row(item))
    assert not executor.running
    eventually(lambda: server.stopped == [job_id])
    server.end_job(job_id, "STOPPED")
    executor.sync()
    assert not executor.get_event_buffer()


def test_a_job_that_waits_for_nobody_is_revoked(make, server, monkeypatch):
    executor = make()
    queued(executor, task())
    job_id = job_of(server)["submission_id"]
    monkeypatch.setattr(ray_executor, "UNWANTED_SECONDS", 0.0)
    executor.sync()
    assert executor.running
    monkeypatch.setattr(ray_executor, "_find_wanted", lambda _ids: set())
    executor.sync()
    assert not executor.running
    eventually(lambda: server.stopped == [job_id])


def test_a_job_that_was_lost_before_it_ran_is_submitted_again(make, server):
    executor = make()
    queued(executor, task())
    job_id = job_of(server)["submission_id"]
    del server.jobs[job_id]

    def again():
        executor.sync()
        return len(server.posted) == 2

    eventually(again)
    server.end_job(job_id)
    wait_for_end(executor)


def test_a_job_that_another_scheduler_followed_to_its_end_is_not_submitted_again(
    make, server, monkeypatch
):
    executor = make()
    queued(executor, task())
    job_id = job_of(server)["submission_id"]
    monkeypatch.setattr(ray_executor, "_find_wanted", lambda _ids: set())
    del server.jobs[job_id]

    def given_up():
        executor.sync()
        return not executor.running

    eventually(given_up)
    assert len(server.posted) == 1
    assert not executor.get_event_buffer()


def test_the_log_of_a_running_task_is_that_of_its_job(make, server):
    item = task(external_executor_id="5e1f")
    server.jobs["airflow-5e1f"] = {"submission_id": "airflow-5e1f", "status": "RUNNING"}
    server.log = "one\ntwo\nthr"
    sources, lines = make().get_task_log(row(item, executor_id="5e1f"), 1)
    assert lines == ["one", "two"]
    assert "airflow-5e1f" in sources[0]


def test_a_log_that_cannot_be_read_is_explained(make, server):
    server.token = "another"
    sources, lines = make().get_task_log(row(task(), executor_id="5e1f"), 1)
    assert not lines
    assert "cannot be read now" in sources[0]


@pytest.mark.skipif(
    not hasattr(workloads, "ExecuteCallback"), reason="Airflow sends callbacks since 3.2"
)
def test_a_callback_is_a_job_too(make, server):
    callback = {"id": str(uuid.uuid4()), "fetch_method": "import_path", "data": {"path": "a.b"}}
    item = workloads.ExecuteCallback(
        callback=callback,
        dag_rel_path="d.py",
        bundle_info={"name": "b"},
        log_path="l",
        token=SECRET,
    )
    executor = make()
    queued(executor, item)
    body = job_of(server)
    assert body["submission_id"] == f"airflow-{callback['id']}"
    server.end_job(body["submission_id"])
    assert next_event(executor)[0] == "success"
