"""Restores in pods of an emulated cluster: contexts for operators, tasks in threads."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.ledger import FailedAttempt, read_failures
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow
from tests.support.airflow.context import FakeTaskInstance
from tests.support.kubernetes.api import IMAGE, NAMESPACE, KubernetesApi
from tests.support.waiting import PATIENCE_SECONDS


def connection(api: KubernetesApi, directory: Path) -> str:
    """Return an Airflow connection to the cluster, as an environment variable holds it."""
    path = api.kubeconfig(directory / "kubeconfig.json")
    return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": path}})


def pod_context(try_number: int = 1, **identity: Any) -> dict[str, Any]:
    """Return a context with what a KubernetesPodOperator reads of it."""
    ti: Any = FakeTaskInstance(try_number=try_number, **identity)
    ti.start_date = datetime.now(UTC)
    return {"ti": ti, "run_id": ti.run_id, "dag": SimpleNamespace(parent_dag=None)}


def arguments(**more: Any) -> dict[str, Any]:
    """Return the arguments of an operator that runs pods on the emulated cluster."""
    return {
        "task_id": "trial",
        "image": IMAGE,
        "namespace": NAMESPACE,
        "base_container_status_polling_interval": 0.2,
        "startup_check_interval_seconds": 1,
        **more,
    }


class Trial:
    """One planned trial, and operators that run it in pods."""

    def __init__(self, api: KubernetesApi, experiment: Path, **plan: Any) -> None:
        self.api = api
        self.store: ObjectStore = open_store(str(experiment))
        plan = {"resume_errored": True, "stale_after": 0, **plan}
        planner = BuildRestorePlanOperator(task_id="plan", experiments=str(experiment), **plan)
        self.items = planner.execute(pod_context())
        self.item = self.items[0]
        self.restore_id: str = self.item["restore_id"]

    def operator(self, **more: Any) -> RestoreTrialKubernetesOperator:
        given = {"trial": self.item, "trainable": "tests.trainables:counting", **more}
        return RestoreTrialKubernetesOperator(**arguments(**given))

    def run(self, **more: Any) -> dict[str, Any]:
        """Run a task to its end."""
        return self.operator(**more).execute(pod_context())

    def abandon(self, **more: Any) -> None:
        """Create a pod, as a task whose worker then dies."""
        operator = self.operator(**more)
        task = operator.open_task()
        operator.start_pod(pod_context(), operator.claim(task), task.plan.metric)

    def start(self, **more: Any) -> "Task":
        """Run a task in a thread of its own."""
        return Task(self.operator(**more))

    def await_iteration(self, iteration: int, attempt: int = 1, *, whole: bool = False) -> str:
        """Wait until the trial has reported an iteration, and return the name of its pod."""
        trial_id = self.item["trial_id"]
        run = layout.WHOLE_EXPERIMENT if whole else trial_id
        key = layout.snapshot_key(self.restore_id, run, attempt)

        def has_reported(pods: list[dict[str, Any]]) -> str | None:
            try:
                rows = json.loads(self.store.get(key))["trial_data"]
            except (KeyNotFoundError, ValueError):
                return None
            results = [json.loads(row[1])["last_result"] for row in rows]
            own = [r.get("training_iteration", 0) for r in results if r.get("trial_id") == trial_id]
            names = [pod["metadata"]["name"] for pod in pods]
            pod = (name for name in names if name.endswith(f"-{attempt}"))
            return next(pod, None) if own and own[0] >= iteration else None

        return self.api.wait_for(has_reported)

    @property
    def failures(self) -> tuple[FailedAttempt, ...]:
        plan = read_plan(self.store, self.restore_id)
        return read_failures(self.store, self.restore_id, self.item["trial_id"], plan.pause_at)

    def iterations(self) -> list[int]:
        """Return the iterations in the trial's result.json."""
        trial_dir = read_plan(self.store, self.restore_id).trial(self.item["trial_id"]).trial_dir
        body = self.store.get(f"{trial_dir}/result.json").decode()
        return [json.loads(line)["training_iteration"] for line in body.splitlines()]


class Task(threading.Thread):
    """A running operator."""

    def __init__(self, operator: RestoreTrialKubernetesOperator) -> None:
        super().__init__(daemon=True)
        self.operator = operator
        self.result: dict[str, Any] | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.operator.execute(pod_context())
        except BaseException as error:  # noqa: BLE001  raised by `end`
            self.error = error

    def end(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait for its end; raise what it raised."""
        self.join(seconds)
        assert not self.is_alive(), "the task has not ended"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result
