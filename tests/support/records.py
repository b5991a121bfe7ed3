"""Restores of a built experiment, night after night, without Ray: what runners leave is written here."""

import json
from typing import Any

from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.restore.attempts import claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.request import RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.start import plan_restore, start_restore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore
from tests.support.experiments.built import make_row, make_state

PLACE = "project/train.py:7 in step"
FAILURE = {"cause": "trainable", "error_type": "ValueError", "error": "no", "place": PLACE}


def plan_night(store: ObjectStore, restore_id: str = "preview", **options: Any) -> RestorePlan:
    """Plan to take up whatever failed."""
    flags = options.pop("flags", ResumeFlags.from_flags(resume_errored=True))
    return plan_restore(
        store, read_experiment(store), restore_id=restore_id, flags=flags, **options
    )


def start_night(store: ObjectStore, restore_id: str, **options: Any) -> RestorePlan:
    plan = plan_night(store, restore_id, **options)
    return start_restore(store, read_experiment(store), plan, holder=f"test {restore_id}")


def leave(
    store: ObjectStore, plan: RestorePlan, trial_id: str, *, result: str = "failed",
    iteration: int = 3, memory: float | None = None, **outcome: Any,
) -> RunnerRequest:  # fmt: skip
    """Leave what a runner leaves: a snapshot and an outcome."""
    request = claim_attempt(store, plan, trial_id, trainable="m:train", memory=memory)
    where = (plan.restore_id, trial_id, request.attempt)
    status = {"finished": "TERMINATED", "failed": "ERROR"}.get(result, "PENDING")
    final = plan.trial(trial_id).final_trial_id
    row = make_row(
        final,
        status=status,
        error=status == "ERROR",
        last_result={"training_iteration": iteration},
        last_result_time=1000.0 * len(store.list_dir(layout.ROOT)) + request.attempt,
    )
    store.put(layout.snapshot_key(*where), make_state([row]))
    if result == "failed":
        outcome = {
            "cause": "trainable",
            "error_type": "ValueError",
            "error": "no",
            "place": PLACE,
        } | outcome
    ended = RunnerOutcome(
        restore_id=plan.restore_id, trial_id=trial_id, attempt=request.attempt, result=result,
        status=json.loads(row[0])["status"], final_trial_id=final, iteration=iteration, **outcome,
    )  # fmt: skip
    store.put(layout.outcome_key(*where), ended.to_json())
    return request


def beat(store: ObjectStore, request: RunnerRequest) -> None:
    """Leave the sign of life of a runner that then died."""
    key = layout.heartbeat_key(request.restore_id, request.trial_id, request.attempt)
    store.put(key, b"{}")


def night(
    store: ObjectStore, restore_id: str, *, trial_id: str = "bad", options: Any = None, **how: Any
) -> CommitSummary:
    """Restore one trial and commit."""
    plan = start_night(store, restore_id, **(options or {}))
    leave(store, plan, trial_id, **how)
    return commit_restore(store, restore_id)
