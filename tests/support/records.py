"""What runners leave behind, written without Ray: the outcome of an attempt, its snapshot, a whole night.

plan = start_night(store, "r1")                            a restore that runners can work on
request = leave_attempt(store, plan, "bad")                one trial ran: a snapshot and an outcome
leave_outcome(store, Attempt("r1", "bad"), result="failed")          an outcome and nothing else
launcher.on_start = ending(store, "failed")                what a runner does that ends like this
night(store, "r1")                                         start, leave one attempt, commit
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import plan_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore
from tests.support.experiments.built import make_row, make_state

PLACE = "project/train.py:7 in step"
FAILURE = {"cause": "trainable", "error_type": "ValueError", "error": "no", "place": PLACE}
"""What an outcome says of a failure, unless a test says something else."""

STATUS = {"finished": "TERMINATED", "failed": "ERROR"}
"""What a trial's row says after such an end; after any other it waits."""


class AnyAttempt(Protocol):
    """What names an attempt: a `RunnerRequest`, or an `Attempt` where none was claimed."""

    @property
    def restore_id(self) -> str: ...
    @property
    def trial_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...


class Attempt(NamedTuple):
    """An attempt that nobody claimed."""

    restore_id: str
    trial_id: str
    attempt: int = 1


def make_outcome(of: AnyAttempt, result: str = "finished", **fields: Any) -> RunnerOutcome:
    """Return how an attempt ended; a failure says where, unless `fields` say something else."""
    usual = {
        "status": STATUS.get(result, "PENDING"),
        "final_trial_id": of.trial_id,
        **(FAILURE if result == "failed" else {}),
    }
    return RunnerOutcome(
        restore_id=of.restore_id,
        trial_id=of.trial_id,
        attempt=of.attempt,
        result=result,
        **{**usual, **fields},
    )


def leave_outcome(
    store: ObjectStore, of: AnyAttempt, result: str = "finished", **fields: Any
) -> None:
    key = layout.outcome_key(of.restore_id, of.trial_id, of.attempt)
    store.put(key, make_outcome(of, result, **fields).to_json())


def ending(
    store: ObjectStore, result: str = "finished", **fields: Any
) -> Callable[[AnyAttempt], None]:
    """Return what a runner does that ends like this, for a launcher that starts none."""
    return lambda request: leave_outcome(store, request, result, **fields)


def leave_attempt(
    store: ObjectStore, plan: RestorePlan, trial_id: str, *rows: list[str],
    result: str = "finished", iteration: int = 3, memory: float | None = None,
    runner: dict[str, Any] | None = None, **outcome: Any,
) -> RunnerRequest:  # fmt: skip
    """Claim the next attempt and leave what its runner leaves: a snapshot and an outcome.

    The snapshot holds `rows`, or else one that fits `result` and `iteration`. `runner` holds fields of
    its runner_data, `outcome` those of the outcome.
    """
    request = claim_attempt(
        store, plan, trial_id, RunnerSettings(trainable="m:train"), memory=memory
    )
    if not rows:
        row = make_row(
            plan.trial(trial_id).final_trial_id,
            status=STATUS.get(result, "PENDING"),
            error=result == "failed",
            last_result={"training_iteration": iteration},
            last_result_time=1000.0 * len(store.list_dir(layout.ROOT)) + request.attempt,
        )
        rows = (row,)
        outcome = {"iteration": iteration, **outcome}
    if trial_id != layout.WHOLE_EXPERIMENT:
        trial = json.loads(rows[0][0])
        outcome = {"status": trial["status"], "final_trial_id": trial["trial_id"], **outcome}
    snapshot = make_state(list(rows), **(runner or {}))
    store.put(layout.snapshot_key(plan.restore_id, trial_id, request.attempt), snapshot)
    leave_outcome(store, request, result, **outcome)
    return request


def beat(store: ObjectStore, of: AnyAttempt) -> None:
    """Leave the sign of life of a runner that then died."""
    store.put(layout.heartbeat_key(of.restore_id, of.trial_id, of.attempt), b"{}")


def prepare_night(
    store: ObjectStore, restore_id: str = "preview", *, can_search: bool = False, **choices: Any
) -> PreparedRestore:
    """Prepare a restore of all trials that failed."""
    choices.setdefault("flags", ResumeFlags.from_flags(resume_errored=True))
    options = PrepareOptions(choices=PlanChoices(**choices), can_search=can_search)
    return plan_restore(store, restore_id, options)


def plan_night(store: ObjectStore, restore_id: str = "preview", **options: Any) -> RestorePlan:
    return prepare_night(store, restore_id, **options).plan


def start_night(store: ObjectStore, restore_id: str = "r1", **options: Any) -> RestorePlan:
    return start_plan(prepare_night(store, restore_id, **options), holder=f"test {restore_id}")


def night(
    store: ObjectStore,
    restore_id: str,
    *,
    trial_id: str = "bad",
    result: str = "failed",
    options: Any = None,
    **how: Any,
) -> CommitSummary:
    """Restore one trial, which fails again, and commit."""
    plan = start_night(store, restore_id, **(options or {}))
    leave_attempt(store, plan, trial_id, result=result, **how)
    return commit_restore(store, restore_id)
