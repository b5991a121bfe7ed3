"""A sweep's own task reports its failure: the recovery DAG is started for just that experiment."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseNotifier, Context
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
from pydantic import ValidationError

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.storage.location import Location

_SAYS_RUNNING = {"type": "DagRunStateResult", "state": "running"}
"""An answer about DAG runs: only who talks for a task understands it (task-sdk 1.3)."""


class TriggerRecoveryNotifier(BaseNotifier):
    """Starts a DAG with `{"experiment": …}` as its conf: an `on_failure_callback` of a sweep's task.

    It works where the callback runs in the task's own process, which is wherever the task raised. Of a
    task whose process was killed Airflow runs the callback in its DAG processor, which may start no
    DAG: then this says so in the log, and the sweep is found by whoever watches its prefix.

    Args:
        dag_id: DAG to start. It must not be paused, or its run waits. (templated)
        experiment: Address of the experiment, as `s3://conn_id@bucket/path`, with no slash at its end.
            (templated)
        extra_conf: More of the DAG run's conf, as `{"stale_after": 0}` where the task's end is the
            driver's end, too. (templated)
    """

    template_fields = ("dag_id", "experiment", "extra_conf")

    def __init__(
        self, *, dag_id: str, experiment: str, extra_conf: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.dag_id = dag_id
        self.experiment = experiment
        self.extra_conf = dict(extra_conf or {})

    def notify(self, context: Context) -> None:
        """Start the DAG, once for a try of the task."""
        experiment = str(_one_experiment(self.experiment))
        comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
        if comms is None or not _talks_for_a_task(comms):
            self.log.error(
                "%s cannot be started from here: the task's process is gone, and Airflow's DAG processor "
                "starts no DAG. %s is found by whoever watches its prefix.",
                self.dag_id,
                experiment,
            )
            return
        run_id = _run_id(experiment, context)
        answer = comms.send(
            TriggerDagRun(
                dag_id=self.dag_id,
                run_id=run_id,
                conf={**self.extra_conf, "experiment": experiment},
            )
        )
        if isinstance(answer, ErrorResponse):
            self.log.warning("%s is not started: %s", self.dag_id, answer.error.value)
            return
        self.log.info("Started %s, run %s, to recover %s.", self.dag_id, run_id, experiment)


def _one_experiment(text: str) -> Address:
    """Read an address; a template that rendered to nothing must not make it that of all experiments."""
    address = Address.parse(text if parse_text(text) else "")  # refuses a secret in it
    path = Location.parse(address.uri).path
    if not path or path.endswith("/"):
        raise InvalidInputError(
            f"{address.uri} names no experiment, but a place for many. It has no slash at its end; "
            "or has its last part rendered to nothing?"
        )
    return address


def _talks_for_a_task(comms: Any) -> bool:
    """Whether the process behind the line starts DAGs; a DAG processor would never answer."""
    try:
        comms.body_decoder.validate_python(_SAYS_RUNNING)
    except ValidationError:
        return False
    return True


def _run_id(experiment: str, context: Context) -> str:
    """Return an id that a callback which runs twice for one try makes twice."""
    ti = context.get("ti")
    if ti is None:
        raise InvalidInputError("TriggerRecoveryNotifier is a callback of tasks, not of DAGs.")
    identity = [ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number, experiment]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Location.parse(experiment).name)
    return f"recovery__{name[:80]}__{digest}"
