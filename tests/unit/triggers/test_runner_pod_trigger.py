"""Following a pod in the triggerer: what is serialized, the first event, what is remembered."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.hooks.pods_async import PatientAsyncKubernetesHook
from airflow_tune_restore.triggers import runner_pod
from airflow_tune_restore.triggers.runner_pod import RunnerPodTrigger
from tests.support.airflow.names import before_3_3, since_3_3


def trigger(**arguments) -> RunnerPodTrigger:
    return RunnerPodTrigger(
        pod_name="p",
        pod_namespace="n",
        trigger_start_time=datetime.now(UTC),
        base_container_name="base",
        **arguments,
    )


def test_it_survives_serialization():
    path, arguments = trigger(metric="score", logging_interval=10).serialize()
    assert path == "airflow_tune_restore.triggers.runner_pod.RunnerPodTrigger"
    again = import_string(path)(**arguments)
    assert again.serialize() == (path, arguments)
    assert (again.metric, again.logging_interval, again.pod_name) == ("score", 10, "p")


def test_it_is_patient_with_the_api_server():
    assert isinstance(trigger().hook, PatientAsyncKubernetesHook)


class Pod(SimpleNamespace):
    def to_dict(self, *, serialize: bool = False) -> dict:
        assert serialize
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
        }
        status = {"phase": self.phase, "conditions": [condition]}
        return {"metadata": {"name": "p"}, "status": status}


def test_its_first_event_waits_until_the_task_is_deferred_and_tells_what_was_seen(monkeypatch):
    waited = []

    async def run(self):
        await self._get_pod()
        yield runner_pod.TriggerEvent({"status": "success", "name": "p"})

    async def get_pod(self, name, namespace):
        assert (name, namespace) == ("p", "n")
        return Pod(phase="Running")

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(KubernetesPodTrigger, "run", run)
    monkeypatch.setattr(PatientAsyncKubernetesHook, "get_pod", get_pod)
    monkeypatch.setattr(runner_pod.asyncio, "sleep", sleep)
    monkeypatch.setattr(runner_pod.time, "monotonic", lambda: 100.0)

    async def first(made):
        return await anext(made.run())

    event = asyncio.run(first(trigger()))
    assert event.payload["status"] == "success"
    assert event.payload["end"]["message"] == "The pod was preempted (PreemptionByScheduler)"
    assert waited[-1] == runner_pod.FIRST_EVENT_SECONDS


def test_lines_are_shown_as_people_read_them(monkeypatch):
    from airflow_tune_restore.protocol.request import RunnerProgress

    shown = []
    watching = trigger(metric="score")
    log = SimpleNamespace(info=lambda *said: shown.append(said[-1]))
    monkeypatch.setattr(type(watching), "log", log)
    manager = watching.pod_manager
    progress = RunnerProgress(trial_id="t", iteration=4, metrics={"score": 0.5}).to_line()
    lines = [f"2026-01-01T00:00:00Z {progress}", "2026-01-01T00:00:01Z a plain line"]
    import pendulum

    manager._emit_container_logs(lines, pendulum.now(), "base")
    assert shown == ["iteration 4, score=0.5", "a plain line"]


@pytest.fixture
def deleted(monkeypatch):
    """The names of the pods that were deleted."""
    names: list[str] = []

    async def delete_pod(self, name, namespace, **_options):
        names.append(name)

    monkeypatch.setattr(PatientAsyncKubernetesHook, "delete_pod", delete_pod)
    return names


@pytest.fixture
def ends_while(monkeypatch):
    """Ends a trigger whose task Airflow knows in a state; without one it cannot be asked."""

    def end(state, **arguments):
        def get_task_states(**_arguments):
            if state == "unknown":
                raise ConnectionError("the triggerer ends")
            return {"run": {"trial_2": state}}

        monkeypatch.setattr(
            "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states",
            get_task_states,
        )
        ending = trigger(**arguments)
        ending.task_instance = SimpleNamespace(
            dag_id="d", task_id="trial", run_id="run", map_index=2
        )
        asyncio.run(ending.cleanup())

    return end


@before_3_3
@pytest.mark.parametrize("state", ["failed", "success", None, "scheduled", "removed"])
def test_a_trigger_whose_task_no_longer_waits_deletes_its_pod_when_it_ends(
    ends_while, deleted, state
):
    ends_while(state)
    assert deleted == ["p"]


@before_3_3
def test_a_pod_that_is_to_be_kept_is_not_deleted(ends_while, deleted):
    ends_while("failed", on_kill_action="keep_pod")
    assert deleted == []


@pytest.mark.parametrize("state", ["deferred", "unknown"])
def test_a_triggerer_that_ends_deletes_no_pod(ends_while, deleted, state):
    ends_while(state)
    assert deleted == []


@since_3_3
def test_ending_deletes_nothing_where_airflow_calls_on_kill(ends_while, deleted):
    ends_while("failed")
    assert deleted == []
