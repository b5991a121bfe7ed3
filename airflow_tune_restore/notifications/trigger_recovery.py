"""A notifier: when the task of a sweep fails, it starts the recovery DAG for that experiment."""

import hashlib
import json
import re
from collections.abc import Mapping
from shlex import quote
from typing import Any

from airflow.sdk import BaseNotifier, Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.dag_runs import can_start_dag_runs, start_dag_run
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.storage.location import Location


class TriggerRecoveryNotifier(BaseNotifier):
    """Starts a DAG with `{"experiment": …}` as its conf: an `on_failure_callback` of a sweep's task.

    This works when the task raises. If the task's process is killed, Airflow runs the callback in its
    DAG processor, which cannot start DAG runs. Then the notifier logs an error, and a sensor that watches
    the prefix finds the sweep.

    Args:
        dag_id: DAG to start. If it is paused, the run waits. (templated)
        experiment: Address of the experiment, as `s3://conn_id@bucket/path`, without a slash at its end.
            (templated)
        extra_conf: More keys of the DAG run's conf, for example `{"stale_after": 0}` if the driver ends
            together with the task. (templated)
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
        """Start the DAG, once per try of the task."""
        experiment = str(_one_experiment(self.experiment))
        if not can_start_dag_runs():
            self.log.error(
                "DAG %s was not started: this callback does not run in the process of a task, and only a "
                "task can start DAG runs. A sensor that watches the prefix finds the experiment. To "
                "recover it now: airflow dags trigger %s --conf %s",
                self.dag_id,
                quote(self.dag_id),
                quote(json.dumps({"experiment": experiment})),
            )
            return
        run_id, conf = _run_id(experiment, context), {**self.extra_conf, "experiment": experiment}
        refusal = start_dag_run(self.dag_id, run_id, conf)
        if refusal:
            self.log.warning("DAG %s was not started: %s", self.dag_id, refusal)
            return
        self.log.info("Started DAG %s, run %s, to recover %s.", self.dag_id, run_id, experiment)


def _one_experiment(text: str) -> Address:
    """Parse an address. If its template rendered to nothing, it must not address all experiments."""
    address = Address.parse(text if parse_text(text) else "")  # refuses a secret in it
    path = Location.parse(address.uri).path
    if not path or path.endswith("/"):
        raise InvalidInputError(
            f"{address.uri} is the address of a directory of experiments, not of one experiment. Remove "
            "the slash at its end. If it has a template, check that its last part is not empty."
        )
    return address


def _run_id(experiment: str, context: Context) -> str:
    """Return the run id: the same if the callback runs twice for one try."""
    ti = context.get("ti")
    if ti is None:
        raise InvalidInputError("TriggerRecoveryNotifier is a callback for tasks, not for DAGs.")
    identity = [ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number, experiment]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Location.parse(experiment).name)
    return f"recovery__{name[:80]}__{digest}"
