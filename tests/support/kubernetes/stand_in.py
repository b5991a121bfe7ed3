"""Trials in pods that need no Ray: a shell script stands in for their runner, and ends when it may."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.module_loading import import_string

from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.plan import read_plan
from tests.support.airflow.names import TaskDeferred
from tests.support.kubernetes.api import KubernetesApi
from tests.support.kubernetes.pods import Trial, arguments, pod_context

SCRIPT = Path(__file__).with_name("stand_in.sh")
BOTH = pytest.mark.parametrize("deferred", [False, True], ids=["in a worker", "deferred"])
"""Runs a test with a task that waits in a worker, and with one that is deferred."""

_NUMBER, _RESULT = -987654, "RESULT"


class StandInTrial(Trial):
    """One planned trial whose pods run the script.

    Args:
        api: The cluster.
        experiment: A copy of one with a trial that failed.
        **plan: More arguments of the planning operator.
    """

    def __init__(self, api: KubernetesApi, experiment: Path, **plan: Any) -> None:
        super().__init__(api, experiment, **plan)
        self.gate = experiment.parent / f"{experiment.name}-may-end"

    def operator(self, **more: Any) -> RestoreTrialKubernetesOperator:
        env = {"STAND_IN_GATE": str(self.gate), "STAND_IN_OUTCOME": self._outcome()}
        given = {"trial": self.item, "trainable": "tests.trainables:counting"}
        given |= {"python": str(SCRIPT), **more, "env": {**env, **more.get("env", {})}}
        return RestoreTrialKubernetesOperator(**arguments(**given))

    def open(self) -> None:
        """Let the pods end."""
        self.gate.touch()

    def await_work(self, attempt: int = 1) -> str:
        """Wait until the pod of an attempt runs, and return its name."""
        said = f"attempt {attempt} is at work"

        def at_work(_pods: object) -> str | None:
            lives = list(self.api.kubelet.pods.values())
            mine = (life for life in lives if life.name.endswith(f"-{attempt}"))
            return next((life.name for life in mine if any(s == said for _, s in life.said)), None)

        name: str = self.api.wait_for(at_work)
        return name

    def restore(self, *, deferred: bool, **more: Any) -> dict[str, Any]:
        """Run a task to its end, in a worker or deferred."""
        return self.run_deferred(**more) if deferred else self.run(**more)

    def run_deferred(self, **more: Any) -> dict[str, Any]:
        """Run a task that defers, in the places of worker and triggerer."""
        more = {"deferrable": True, "logging_interval": 1, "poll_interval": 0.05, **more}
        operator = self.operator(**more)
        context = pod_context()
        try:
            return operator.execute(context)
        except TaskDeferred as error:
            deferred = error
        while True:
            event = follow(deferred)
            try:
                result: dict[str, Any] = self.operator(**more).trigger_reentry(context, event)
            except TaskDeferred as error:
                deferred = error
            else:
                return result

    def _outcome(self) -> str:
        is_whole_experiment = read_plan(self.store, self.restore_id).is_whole_experiment
        outcome = RunnerOutcome(
            restore_id=self.restore_id,
            trial_id=WHOLE_EXPERIMENT if is_whole_experiment else self.item["trial_id"],
            attempt=_NUMBER,
            result=Result.FINISHED,
            status="TERMINATED",
            final_trial_id=self.item["trial_id"],
            iteration=6,
            cause="actor_died",  # counts only if it failed
            error="The actor died unexpectedly before finishing this task.",
        )
        return outcome.to_json().decode().replace('"finished"', f'"{_RESULT}"')


def follow(deferred: TaskDeferred) -> dict[str, Any]:
    """Wait as a triggerer does, and return its event."""
    path, arguments_ = deferred.trigger.serialize()

    async def first() -> dict[str, Any]:
        return (await anext(import_string(path)(**arguments_).run())).payload

    return asyncio.run(first())
