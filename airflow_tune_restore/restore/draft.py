"""One experiment on its way to a restore: is it dead, what would be resumed, can that be run here.

What speaks against a restore is raised; what makes one needless is returned in words.
"""

from dataclasses import dataclass
from datetime import timedelta

from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    KeyNotFoundError,
    LeaseLostError,
    StateUnreadableError,
)
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import examine
from airflow_tune_restore.restore import lease
from airflow_tune_restore.restore.commit import settle_abandoned
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import (
    DEFAULT_MAX_MEMORY_BYTES,
    RestorePlan,
    Strategy,
    TrialAction,
    describe_quarantine,
)
from airflow_tune_restore.restore.start import (
    fresh_restore_id,
    plan_restore,
    read_plan,
    start_restore,
)
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """What the user chose: when an experiment counts as dead, and what `build_plan` is told."""

    flags: ResumeFlags
    strategy: str
    stale_after: timedelta
    fresh_budget: bool = False
    trim_results: bool = False
    allow_scratch: bool = False
    max_attempts: int | None = None
    max_memory_bytes: float = DEFAULT_MAX_MEMORY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A restore that could be started.

    Args:
        store: Rooted at the experiment directory.
        experiment: As read.
        plan: What would be done.
        is_started: Whether this very restore holds the lease already: whoever asks does so again.
    """

    store: ObjectStore
    experiment: Experiment
    plan: RestorePlan
    is_started: bool = False


def draft_restore(store: ObjectStore, base_id: str, options: DraftOptions) -> Draft | str:
    """Plan the restore of one experiment. Writes nothing.

    Args:
        store: Rooted at the experiment directory.
        base_id: Identifies who asks; asking again re-enters the restore.
        options: What the user chose.

    Returns:
        The draft, or in words why there is nothing to do.

    Raises:
        ExperimentRunningError: If it is alive.
        LeaseHeldError: If another restore is at work on it.
        TuneRestoreError: If it cannot be restored.
    """
    restore_id = fresh_restore_id(store, base_id)
    if (own := _own_plan(store, restore_id)) is not None:
        experiment = read_experiment(store)
        return Draft(store=store, experiment=experiment, plan=own, is_started=True)
    lease.refuse_if_alive(store, restore_id)
    report = examine(store, stale_after=options.stale_after)
    match report.health:
        case Health.RUNNING:
            raise ExperimentRunningError(report.experiment, report.reason)
        case Health.UNREADABLE:
            raise StateUnreadableError(report.experiment, report.reason)
        case Health.NOT_STARTED:
            raise InvalidInputError(
                f"{report.reason}. There is nothing to resume; run its sweep again."
            )
        case Health.FINISHED | Health.ERRORED | Health.INTERRUPTED:
            draft = _plan(store, restore_id, options)
    if all(trial.action is TrialAction.KEEP for trial in draft.plan.trials):
        return _nothing_to_run(report.reason, draft.plan)
    if draft.plan.strategy is Strategy.WHOLE_EXPERIMENT and draft.plan.to_run:
        raise InvalidInputError(
            f"{store.uri} wants to be restored as a whole: {draft.plan.strategy_reason}. This "
            'release runs trials one by one only; strategy="per_trial" (--strategy per_trial) does '
            "so and gives that up."
        )
    return draft


def start_draft(
    draft: Draft, options: DraftOptions, *, holder: str, ttl_seconds: float
) -> tuple[RestorePlan | None, CommitSummary | None]:
    """Take the lease and write the plan; what a restore that died left behind is committed first.

    Returns:
        The plan as written (None if after settling there was nothing left to do), and what was settled.

    Raises:
        LeaseHeldError: If another restore is alive.
    """
    settled = None
    if not draft.is_started:
        settled = settle_abandoned(draft.store, restore_id=draft.plan.restore_id, holder=holder)
        if settled is not None:
            draft = _plan(draft.store, draft.plan.restore_id, options)
            if all(trial.action is TrialAction.KEEP for trial in draft.plan.trials):
                return None, settled
    plan = start_restore(
        draft.store, draft.experiment, draft.plan, holder=holder, ttl_seconds=ttl_seconds
    )
    return plan, settled


def _nothing_to_run(reason: str, plan: RestorePlan) -> str:
    text = f"{reason}; with these flags every trial stays as it is"
    if plan.quarantined:
        ids = [trial.trial_id for trial in plan.quarantined]
        text += f"; {describe_quarantine(plan.experiment, ids)}"
    return text


def _plan(store: ObjectStore, restore_id: str, options: DraftOptions) -> Draft:
    experiment = read_experiment(store)
    plan = plan_restore(
        store,
        experiment,
        restore_id=restore_id,
        flags=options.flags,
        strategy=options.strategy,
        fresh_budget=options.fresh_budget,
        trim_results=options.trim_results,
        allow_scratch=options.allow_scratch,
        max_attempts=options.max_attempts,
        max_memory_bytes=options.max_memory_bytes,
    )
    return Draft(store=store, experiment=experiment, plan=plan)


def _own_plan(store: ObjectStore, restore_id: str) -> RestorePlan | None:
    """Return the plan of a restore that an earlier try of this task has started."""
    try:
        lease.check_held(store, restore_id)
        return read_plan(store, restore_id)
    except (LeaseLostError, KeyNotFoundError):
        return None
