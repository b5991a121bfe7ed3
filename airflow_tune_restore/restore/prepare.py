"""Prepare the restore of one experiment: check that its driver is dead, then plan. Writes nothing.

A reason against a restore is raised; a reason that makes one needless is returned as text.
"""

from collections.abc import Callable
from dataclasses import replace

from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.budget import IN_WORK
from airflow_tune_restore.experiments.examine import examine
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import (
    StateReader,
    read_base,
    read_experiment,
)
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.root import Root, list_root
from airflow_tune_restore.experiments.state import Keep
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.lease_objects import was_restored
from airflow_tune_restore.restore.abandoned import has_left_work
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit_record import name_commit
from airflow_tune_restore.restore.flags import ResumeType
from airflow_tune_restore.restore.kept import describe_kept
from airflow_tune_restore.restore.ledger import Ledger, read_ledger
from airflow_tune_restore.restore.narrow import narrow
from airflow_tune_restore.restore.own_restore import look_for_own
from airflow_tune_restore.restore.part import leave_all, limit_tasks
from airflow_tune_restore.restore.plan import RestorePlan, check_fits, read_plan
from airflow_tune_restore.restore.planner import (
    build_plan,
    build_search_plan,
    choices_for,
    find_trainable_name,
)
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.sharing import share_driver
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.wrapped import ReadOnceStore

_SHOWN_WARNINGS = 5


def prepare_restore(
    store: ObjectStore, base_id: str, options: PrepareOptions
) -> PreparedRestore | str:
    """Check that the experiment can be restored now, and plan it. Return why if there is nothing to do.

    `base_id` identifies the caller's run; the same id again continues the same restore.

    Raises:
        ExperimentRunningError: If its driver is alive.
        LeaseHeldError: If another restore is running.
        TuneRestoreError: If it cannot be restored.
    """
    if why_not := options.only.why_not(store.uri, options.prefix):
        return why_not
    root = list_root(store)
    prepared = _prepare(store, root, base_id, options)
    if prepared.is_started:
        return prepared
    if prepared.plan.changes_trials:
        return _committable(prepared, root.entries)
    news = [note for note in prepared.plan.warnings if note not in prepared.health_reason]
    kept = describe_kept(prepared.plan, options.name_option)
    stays = kept or ["every trial stays as it is"]
    nothing = "; ".join([prepared.health_reason, *stays, *news[:_SHOWN_WARNINGS]])
    if _has_left_work(prepared, root.entries):
        return replace(prepared, nothing_to_do=nothing)
    if prepared.plan.only_continues_search:
        return _committable(prepared, root.entries)
    if prepared.samples_left and not options.takes_some:
        return _committable(_with_search_plan(prepared), root.entries)
    return nothing


def prepare_continued_search(
    store: ObjectStore, base_id: str, options: PrepareOptions
) -> PreparedRestore | str:
    """Prepare to continue the search: recorded trials stay as they are. Else as `prepare_restore`."""
    root = list_root(store)
    prepared = replace(_prepare(store, root, base_id, options), is_search=True)
    if prepared.is_started:
        return prepared
    if prepared.plan.only_continues_search:
        return _committable(prepared, root.entries)
    if prepared.samples_left == 0:
        nothing = f"{prepared.health_reason}; all its samples are drawn"
        has_left = _has_left_work(prepared, root.entries)
        return replace(prepared, nothing_to_do=nothing) if has_left else nothing
    return _committable(_with_search_plan(prepared), root.entries)


def plan_restore(store: ObjectStore, restore_id: str, options: PrepareOptions) -> PreparedRestore:
    """Read the experiment and plan its restore, whatever its health."""
    reading, read_state = ReadOnceStore(store), state_reader(options.choices)
    planned = _plan(reading, reading.list_dir(), read_state, restore_id, options)
    return replace(planned, store=store)


def _plan(
    store: ReadOnceStore,
    entries: list[Entry],
    read_state: StateReader,
    restore_id: str,
    options: PrepareOptions,
) -> PreparedRestore:
    experiment = read_experiment(
        store, entries, read_state=read_state, ignore_tuner=options.choices.ignore_tuner
    )
    if options.recipes is not None:
        shared, options = options, _with_recipe(store, experiment, options)
        if _reads(options.choices) != _reads(shared.choices):
            experiment = read_experiment(
                store,
                entries,
                read_state=state_reader(options.choices),
                ignore_tuner=options.choices.ignore_tuner,
            )
    ledger, warning = read_ledger(store) if was_restored(entries) else (Ledger(), "")
    known = ledger.trials
    narrowed = narrow(store, experiment, ledger, options.choices, options.only, options.prefix)
    choices = narrowed.choices
    chosen = {} if narrowed.takes_none else choices_for(experiment, choices)
    to_resume = [t for t in experiment.trials if chosen.get(t.trial_id) is ResumeType.RESUME]
    plan = build_plan(
        experiment,
        choices,
        restore_id=restore_id,
        checkpoints=read_checkpoint_choices(
            store, to_resume, prefer_newest=choices.newest_checkpoint
        ),
        can_search=options.can_search,
        quarantined=ledger.quarantined(choices.max_attempts),
    )
    plan = leave_all(plan) if narrowed.takes_none else plan
    older = older_states(entries, experiment.state_file.name)
    notes = filter(None, [warning, narrowed.note])
    plan = replace(
        plan,
        warnings=(*plan.warnings, *notes, *describe_older_runs(store, older, experiment.state)),
        failures={t.trial_id: known[t.trial_id] for t in plan.to_run if t.trial_id in known},
        pause_at=options.window_end,
    )
    plan = plan if options.in_pods else share_driver(plan, experiment)
    plan = limit_tasks(plan, options.most_tasks)
    return PreparedRestore.of(store, experiment, plan, options)


def _with_recipe(
    store: ObjectStore, experiment: Experiment, options: PrepareOptions
) -> PrepareOptions:
    """Return the options with the recipe of an experiment; its flags may change whose trials are run."""
    name = find_trainable_name(experiment, options.choices)
    own = options.for_trainable(store, name)
    later = find_trainable_name(experiment, own.choices)
    return own if later == name else options.for_trainable(store, later)


def _reads(choices: PlanChoices) -> tuple[bool, bool]:
    """Return the choices that decide how much of an experiment is read."""
    return choices.flags.keeps_terminated_rows, choices.ignore_tuner


def state_reader(choices: PlanChoices) -> StateReader:
    """Return what reads as much of a state as a plan needs."""
    return StateReader(Keep(terminated_rows=choices.flags.keeps_terminated_rows, parameters=True))


def plan_again(prepared: PreparedRestore) -> PreparedRestore:
    """Plan the same restore again, after the commit of a restore that died."""
    options = prepared.options
    if not prepared.is_search:
        again = plan_restore(prepared.store, prepared.plan.restore_id, options)
        if again.plan.changes_trials or not again.samples_left or options.takes_some:
            return replace(again, watch=prepared.watch)
    again = _with_search_plan(prepared)
    has_samples = again.samples_left != 0
    return replace(again, plan=replace(again.plan, continues_search=has_samples))


def preview_restore(
    store: ObjectStore, options: PrepareOptions
) -> tuple[RestorePlan, list[TuneRestoreError]]:
    """Return the plan of a restore, and what would refuse it now. Writes nothing."""
    root, reading = list_root(store), ReadOnceStore(store)
    read_state = state_reader(options.choices)
    plan = _plan(reading, root.entries, read_state, "preview", options).plan
    refusals: dict[str, TuneRestoreError] = {}

    def refuse_if_running() -> None:
        report = examine(reading, root, stale_after=options.stale_after, read_state=read_state)
        if report.health is Health.RUNNING:
            raise ExperimentRunningError(report.experiment, report.reason)

    def check(refuse: Callable[[], object]) -> None:
        try:
            refuse()
        except TuneRestoreError as error:
            refusals.setdefault(str(error), error)

    check(lambda: store.list_dir(layout.ROOT))
    check(lambda: lease.refuse_if_alive(store, plan.restore_id, ask_holder=options.ask_holder))
    check(refuse_if_running)
    if plan.changes_trials or plan.samples_left:
        searches = plan.continues_search or not plan.changes_trials
        check(lambda: name_commit(store, root.entries, continues_search=searches))
    return plan, list(refusals.values())


def _committable(prepared: PreparedRestore, entries: list[Entry]) -> PreparedRestore:
    """Refuse now what could not be committed at the end (UncommittableError)."""
    searches = prepared.plan.continues_search
    name_commit(prepared.store, entries, continues_search=searches)
    return prepared


def _has_left_work(prepared: PreparedRestore, entries: list[Entry]) -> bool:
    restore_id = prepared.plan.restore_id
    return was_restored(entries) and has_left_work(prepared.store, restore_id)


def _with_search_plan(prepared: PreparedRestore) -> PreparedRestore:
    planned = _plan_search(prepared.store, prepared.plan.restore_id, prepared.options)
    return replace(
        planned,
        last_write=prepared.last_write,
        watch=prepared.watch,
        is_search=prepared.is_search,
    )


def _prepare(
    store: ObjectStore, root: Root, base_id: str, options: PrepareOptions
) -> PreparedRestore:
    """Return the caller's started restore, or plan a new one of an experiment that is dead.

    Experiments with large states take turns.
    """
    states = (entry.size_bytes for entry in root.entries if layout.is_state_file(entry.name))
    with IN_WORK.hold(max(states, default=0)):
        if was_restored(root.entries):
            return _prepare_restored(store, root, base_id, options)
        # then it has no lease either; `acquire` looks again
        return _plan_dead(store, root, base_id, options)


def _prepare_restored(
    store: ObjectStore, root: Root, base_id: str, options: PrepareOptions
) -> PreparedRestore:
    restore_id, has_started = look_for_own(store, base_id)
    if has_started:
        own, experiment = read_plan(store, restore_id), read_base(store)
        if experiment.state_file.sha256 == own.base.sha256:
            check_fits(store, own, experiment.state)
        return PreparedRestore.of(store, experiment, own, options, is_started=True)
    watch = lease.refuse_if_alive(store, restore_id, ask_holder=options.ask_holder)
    return replace(_plan_dead(store, root, restore_id, options), watch=watch)


def _plan_dead(
    store: ObjectStore, root: Root, restore_id: str, options: PrepareOptions
) -> PreparedRestore:
    read_state, reading = state_reader(options.choices), ReadOnceStore(store)
    report = examine(
        reading,
        root,
        stale_after=options.stale_after,
        ask_driver=options.ask_driver,
        read_state=read_state,
    )
    if report.health is Health.NOT_STARTED and options.recipes is not None:
        tuner = read_base(reading).tuner
        options = options.for_trainable(store, (tuner and tuner.trainable_name) or "")
    match report.health:
        case Health.RUNNING:
            raise ExperimentRunningError(report.experiment, report.reason)
        case Health.UNREADABLE:
            raise StateUnreadableError(report.experiment, report.reason)
        case Health.NOT_STARTED if not options.can_start:
            raise InvalidInputError(
                f"{report.reason}. With a param_space (--param-space) it is started in its place."
            )
        case Health.NOT_STARTED if options.choices.trials:
            raise InvalidInputError(
                f"{report.reason}. It has no trial yet: leave out trials (--trial)."
            )
        case Health.NOT_STARTED if options.choices.ignore_tuner:
            raise InvalidInputError(
                f"{report.reason}. tuner.pkl is all there is of it: leave out ignore_tuner "
                "(--ignore-tuner)."
            )
        case Health.NOT_STARTED:
            planned = _plan_search(store, restore_id, options)
            if options.only.narrows:
                health_reason = f"{report.reason}. It has no trial yet to match {options.only}"
                planned = replace(
                    planned, plan=leave_all(planned.plan), health_reason=health_reason
                )
            return replace(planned, last_write=report.last_write)
        case _:
            prepared = _plan(reading, root.entries, read_state, restore_id, options)
            return replace(
                prepared,
                store=store,
                health_reason=report.reason,
                last_write=report.last_write,
            )


def _plan_search(store: ObjectStore, restore_id: str, options: PrepareOptions) -> PreparedRestore:
    choices = options.choices
    experiment = read_base(store, ignore_tuner=choices.ignore_tuner)
    plan = build_search_plan(
        experiment, choices, restore_id=restore_id, can_search=options.can_search
    )
    plan = replace(plan, pause_at=options.window_end)
    return PreparedRestore.of(store, experiment, plan, options)
