"""One experiment on its way to a restore: is it dead, what would be resumed, can that be run here.

What speaks against a restore is raised; what makes one needless is returned in words.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    KeyNotFoundError,
    LeaseLostError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.evidence import DriverStatus
from airflow_tune_restore.experiments.examine import examine
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.read import read_base, read_experiment
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.restore.commit import commit_abandoned
from airflow_tune_restore.restore.commit_record import name_commit
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import DEFAULT_MAX_MEMORY_BYTES, RestorePlan
from airflow_tune_restore.restore.planner import build_continuation
from airflow_tune_restore.restore.start import (
    check_fits,
    fresh_restore_id,
    plan_restore,
    read_plan,
    start_restore,
)
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore

_SHOWN_WARNINGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """What the user chose: when an experiment counts as dead, and what `build_plan` is told.

    `can_start`: a param_space is given, so that an experiment that never began can be started.
    `can_search`: a search_alg is given, so that samples whose own searcher is lost can be drawn.
    `ask_driver`: says of an experiment (URI) that looks dead whether a driver runs for it.
    """

    flags: ResumeFlags
    strategy: str
    stale_after: timedelta
    fresh_budget: bool = False
    trim_results: bool = False
    remember_scheduler: bool = False
    allow_scratch: bool = False
    newest_checkpoint: bool = False
    can_start: bool = False
    can_search: bool = False
    max_attempts: int | None = None
    max_memory_bytes: float = DEFAULT_MAX_MEMORY_BYTES
    ignore_tuner: bool = False
    ask_driver: Callable[[str], DriverStatus] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A restore that could be started.

    Args:
        store: Rooted at the experiment directory.
        experiment: As read.
        plan: What would be done.
        is_started: Whether this very restore holds the lease already: whoever asks does so again.
        health_reason: What its health is, in words.
        watch: Of the restore that holds the lease and looks dead, if there is one.
    """

    store: ObjectStore
    experiment: Experiment
    plan: RestorePlan
    is_started: bool = False
    health_reason: str = ""
    watch: lease.Watch | None = None


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
    draft = _begin(store, base_id, options)
    if draft.is_started:
        return draft
    if draft.plan.changes_trials or draft.plan.only_continues_search:
        return _committable(draft)
    if draft.experiment.samples_left:
        return _committable(_continued(draft, options))
    return _nothing_to_run(draft.health_reason, draft.plan)


def foresee_refusals(store: ObjectStore, plan: RestorePlan, *, stale_after: timedelta) -> list[str]:
    """Say what would refuse a restore now: for a preview, which is of use all the same. Writes nothing.

    Args:
        store: Rooted at the experiment directory.
        plan: What would be done.
        stale_after: Silence after which the experiment counts as dead.
    """
    said: dict[str, None] = {}

    def refuse_if_running() -> None:
        report = examine(store, stale_after=stale_after)
        if report.health is Health.RUNNING:
            raise ExperimentRunningError(report.experiment, report.reason)

    def ask(refuse: Callable[[], object]) -> None:
        try:
            refuse()
        except TuneRestoreError as error:
            said[str(error)] = None

    ask(lambda: store.list_dir(layout.ROOT))
    ask(lambda: lease.refuse_if_alive(store, plan.restore_id))
    ask(refuse_if_running)
    if plan.changes_trials or plan.samples_left:
        draws = plan.continues_search or not plan.changes_trials
        ask(lambda: name_commit(store, continues_search=draws))
    return list(said)


def draft_continuation(store: ObjectStore, base_id: str, options: DraftOptions) -> Draft | str:
    """Plan to draw the samples that were never drawn, and nothing else. Writes nothing.

    Takes, returns and raises what `draft_restore` does.
    """
    draft = _begin(store, base_id, options)
    if draft.is_started:
        return draft
    if draft.plan.only_continues_search:
        return _committable(draft)
    if draft.experiment.samples_left == 0:
        return f"{draft.health_reason}; all its samples are drawn"
    return _committable(_continued(draft, options))


def _committable(draft: Draft) -> Draft:
    """Refuse now what could not be committed at the end (UncommittableError)."""
    name_commit(draft.store, continues_search=draft.plan.continues_search)
    return draft


def _continued(draft: Draft, options: DraftOptions) -> Draft:
    """Plan to draw samples instead."""
    drawn = _continuation(draft.store, draft.plan.restore_id, options)
    return replace(drawn, watch=draft.watch)


def _begin(store: ObjectStore, base_id: str, options: DraftOptions) -> Draft:
    """Refuse what must not be touched; plan the rest with the flags."""
    restore_id = fresh_restore_id(store, base_id)
    if (own := _own_plan(store, restore_id)) is not None:
        experiment = read_base(store)
        if experiment.state_file.sha256 == own.base.sha256:
            check_fits(store, own, experiment.state)
        return Draft(store=store, experiment=experiment, plan=own, is_started=True)
    watch = lease.refuse_if_alive(store, restore_id)
    return replace(_draft_of_dead(store, restore_id, options), watch=watch)


def _draft_of_dead(store: ObjectStore, restore_id: str, options: DraftOptions) -> Draft:
    report = examine(store, stale_after=options.stale_after, ask_driver=options.ask_driver)
    match report.health:
        case Health.RUNNING:
            raise ExperimentRunningError(report.experiment, report.reason)
        case Health.UNREADABLE:
            raise StateUnreadableError(report.experiment, report.reason)
        case Health.NOT_STARTED if not options.can_start:
            raise InvalidInputError(
                f"{report.reason}. With a param_space (--param-space) it is started in its place."
            )
        case Health.NOT_STARTED if options.ignore_tuner:
            raise InvalidInputError(
                f"{report.reason}. tuner.pkl is all there is of it: leave out ignore_tuner "
                "(--ignore-tuner)."
            )
        case Health.NOT_STARTED:
            return _continuation(store, restore_id, options)
        case _:
            return replace(_plan(store, restore_id, options), health_reason=report.reason)


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
        store, restore_id = draft.store, draft.plan.restore_id
        settled = commit_abandoned(
            store,
            restore_id=restore_id,
            holder=holder,
            ttl_seconds=ttl_seconds,
            watch=draft.watch,
        )
        if settled is not None:
            try:
                draft = replace(_again(draft, options), watch=draft.watch)
            except Exception:
                lease.release(store, lease.check_held(store, restore_id))
                raise
            if not draft.plan.has_work and not draft.plan.changes_trials:
                lease.release(store, lease.check_held(store, restore_id))
                return None, settled
    plan = start_restore(
        draft.store,
        draft.experiment,
        draft.plan,
        holder=holder,
        ttl_seconds=ttl_seconds,
        watch=draft.watch,
    )
    return plan, settled


def _nothing_to_run(reason: str, plan: RestorePlan) -> str:
    text = f"{reason}; with these flags every trial stays as it is"
    news = [warning for warning in plan.warnings if warning not in reason]
    return "; ".join([text, *news[:_SHOWN_WARNINGS]])


def _plan(store: ObjectStore, restore_id: str, options: DraftOptions) -> Draft:
    experiment = read_experiment(
        store,
        keep_terminated_rows=options.flags.keeps_terminated_rows,
        ignore_tuner=options.ignore_tuner,
    )
    plan = plan_restore(
        store,
        experiment,
        restore_id=restore_id,
        flags=options.flags,
        strategy=options.strategy,
        fresh_budget=options.fresh_budget,
        trim_results=options.trim_results,
        remember_scheduler=options.remember_scheduler,
        allow_scratch=options.allow_scratch,
        newest_checkpoint=options.newest_checkpoint,
        can_search=options.can_search,
        max_attempts=options.max_attempts,
        max_memory_bytes=options.max_memory_bytes,
    )
    return Draft(store=store, experiment=experiment, plan=plan)


def _continuation(store: ObjectStore, restore_id: str, options: DraftOptions) -> Draft:
    experiment = read_base(store, ignore_tuner=options.ignore_tuner)
    plan = build_continuation(experiment, restore_id=restore_id, can_search=options.can_search)
    return Draft(store=store, experiment=experiment, plan=plan)


def _again(draft: Draft, options: DraftOptions) -> Draft:
    """Plan the same anew, from what a restore that died has left."""
    if not draft.plan.only_continues_search:
        return _plan(draft.store, draft.plan.restore_id, options)
    again = _continuation(draft.store, draft.plan.restore_id, options)
    if again.experiment.samples_left == 0:
        return replace(again, plan=replace(again.plan, continues_search=False))
    return again


def _own_plan(store: ObjectStore, restore_id: str) -> RestorePlan | None:
    """Return the plan of a restore that an earlier try of this task has started."""
    try:
        lease.check_held(store, restore_id)
        return read_plan(store, restore_id)
    except (LeaseLostError, KeyNotFoundError):
        return None
