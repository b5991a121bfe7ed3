"""Steps of the operators that run a sweep, wherever it runs: its script, then restores of the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_bool, parse_trainable
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    RunnerDiedError,
    RunnerError,
    RunnerRefusedError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.ends import is_budget_spent
from airflow_tune_restore.experiments.examine import examine, is_experiment
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.root import list_root
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.hooks.airflow_errors import PERMANENT
from airflow_tune_restore.hooks.dag_runs import hold_as_dag_run
from airflow_tune_restore.operators.attempt_task import AttemptTask, OpenExperiment
from airflow_tune_restore.operators.continue_search_steps import (
    continued_search_options,
    find_started_restore,
    raise_unless_ended,
    report_commit,
)
from airflow_tune_restore.operators.prepare_restores import DEFAULT_LEASE_TTL
from airflow_tune_restore.operators.xcom import restore_id_for
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.lease_objects import release_times
from airflow_tune_restore.protocol.printable import counted, first_of, share
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.choices import PlanChoices, Strategy
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.own_restore import fresh_restore_id
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.recipes import Recipes
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.sweep import (
    OwnSweep,
    end_sweep,
    find_state,
    find_sweep,
    release_sweep,
    start_sweep,
)
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

SWEEP_FIELDS = (
    "entrypoint",
    "experiment",
    "resume_unfinished",
    "resume_errored",
    "stale_after",
    "ignore_tuner",
    "trust_name",
)
"""The templated arguments that the operators of all launchers have."""

_AT_ONCE = timedelta(0)
_SAME_MOMENT = timedelta(seconds=2)
"""Stores report times in whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One try of a task that runs a sweep: what it does next.

    Args:
        options: How an experiment is restored that another process has made.
        is_alive: Whether a job or pod of the sweep's script lives, to which the task can attach.
        check_trainable: Raises if the trainable cannot be used, or does not fit a restore; with None,
            the sweep has not begun yet.
    """

    context: Context
    experiment: OpenExperiment
    options: PrepareOptions
    is_alive: Callable[[AttemptTask], bool]
    check_trainable: Callable[[PreparedRestore | None], None]
    log: "Logger"

    @property
    def store(self) -> ObjectStore:
        """The store of the experiment."""
        return self.experiment.store

    @property
    def base_id(self) -> str:
        """The text that the ids of the task's restores and sweeps are made from."""
        return restore_id_for(self.context, self.store.uri)

    def next_task(self) -> AttemptTask | None:
        """Return what is to run next; None if the experiment has finished, by this task.

        That is the script, if nothing of it is left to restore or if it lives; else a restore of what it
        left.

        Raises:
            LeaseHeldError: If another restore or sweep works on the experiment.
            ExperimentRunningError: If the experiment of another process may be running.
            RunnerRefusedError: If nothing is to do, and this task has not finished the experiment.
        """
        sweep = find_sweep(self.store, self.base_id)
        if sweep.running is not None:
            task = self._task(read_plan(self.store, sweep.running))
            if self.is_alive(task) or not find_state(self.store):
                return task
            self.log.info("The script has ended. Its experiment is restored now.")
            end_sweep(self.store, sweep.running)
        has_own = sweep.last is not None or self._has_restored()
        if find_state(self.store):
            return self._restore(sweep, has_own=has_own)
        if not has_own:
            self._refuse_another_driver()
        self.check_trainable(None)
        held = hold_as_dag_run(self.context, self.log)
        ttl_seconds = DEFAULT_LEASE_TTL.total_seconds()
        return self._task(start_sweep(self.store, self.base_id, ttl_seconds=ttl_seconds, **held))

    def report_finished(self) -> dict[str, Any]:
        """Log that an earlier try of the task has finished the sweep, and return what it returns."""
        self.log.info("The sweep has finished already. Nothing was started.")
        return report_sweep(self.experiment, self.log)

    def _restore(self, sweep: OwnSweep, *, has_own: bool) -> AttemptTask | None:
        is_over = has_own and not self._was_written_since()
        options = replace(self.options, stale_after=_AT_ONCE) if is_over else self.options
        prepared = prepare_restore(self.store, self.base_id, options)
        if isinstance(prepared, str):
            self._refuse_unless_done(sweep, prepared, has_own=has_own)
            return None
        if not prepared.is_started:
            self.check_trainable(prepared)
        plan, _ = start_restore(
            prepared,
            ttl_seconds=DEFAULT_LEASE_TTL.total_seconds(),
            **hold_as_dag_run(self.context, self.log),
        )
        if plan is None:  # a restore that died had done all of it
            self._refuse_unless_done(sweep, prepared.nothing_to_do, has_own=True)
            return None
        self.log.info("%s: restore %s of all its trials", self.experiment.address, plan.restore_id)
        return self._task(plan)

    def _refuse_unless_done(self, sweep: OwnSweep, why: str, *, has_own: bool) -> None:
        """Raise, unless nothing is to do because this task or another restore has done it."""
        report = look_at(self.store)
        if report is None or report.health is not Health.FINISHED:
            raise RunnerRefusedError(f"{self.store.uri} cannot be finished by a restore: {why}")
        if not has_own:
            raise RunnerRefusedError(
                f"{self.store.uri} has finished before this task ran ({report.reason}). Nothing was "
                "started. Give each DAG run a directory of its own, for example "
                "'…/sweep_{{ dag_run.run_after | ts_nodash }}'"
            )
        was_restored = (
            layout.is_committed_state(report.state_file or "") or self._was_written_since()
        )
        if sweep.last is not None and not was_restored:
            records = AttemptRecords(self.store, sweep.last, layout.WHOLE_EXPERIMENT)
            outcome = records.outcome_or_interrupted()
            if outcome is not None and outcome.result == Result.FAILED:
                raise _failed_at_the_end(self.store, outcome)

    def _refuse_another_driver(self) -> None:
        """Raise if the driver of another process may just be starting there."""
        root = list_root(self.store)
        if is_experiment(root.entries):
            report = examine(self.store, root, stale_after=self.options.stale_after)
            if report.health is Health.RUNNING:
                raise ExperimentRunningError(report.experiment, report.reason)

    def _was_written_since(self) -> bool:
        """Whether the experiment was written to after the last lease of it was released.

        Then another driver may run, for example one that a user has started by hand. Both times are by
        the clock of the store.
        """
        report = look_at(self.store)
        ended = max(release_times(self.store.list_dir(layout.LEASE)), default=None)
        if report is None or report.last_write is None or ended is None:
            return False
        return report.last_write > ended + _SAME_MOMENT

    def _has_restored(self) -> bool:
        """Whether the task has started a restore, in this try or an earlier one."""
        newest = fresh_restore_id(self.store, self.base_id)
        return newest != self.base_id or find_started_restore(self.context, self.store) is not None

    def _task(self, plan: RestorePlan) -> AttemptTask:
        return AttemptTask(self.experiment, plan, layout.WHOLE_EXPERIMENT, is_alone=True)


def has_one_trainable(given: Any) -> bool:
    """Whether one trainable is given for all experiments, which can be checked before a sweep begins."""
    return isinstance(parse_trainable("trainable", given), str)


def sweep_options(given: Any, recipes: Recipes) -> PrepareOptions:
    """Return how the experiment of a sweep is restored, from the arguments of its operator.

    With the trials that failed, those are resumed that `fail_fast` ended because of them.
    """
    options = continued_search_options(
        *(given.stale_after, given.param_space, given.search_alg),
        *(given.ignore_tuner, given.trust_name, recipes),
    )
    resume_errored = parse_bool("resume_errored", given.resume_errored)
    flags = ResumeFlags.from_flags(
        resume_unfinished=parse_bool("resume_unfinished", given.resume_unfinished),
        resume_errored=resume_errored,
        resume_cut_short=resume_errored,
    )
    choices: PlanChoices = replace(
        options.choices, flags=flags, strategy=Strategy.WHOLE_EXPERIMENT.value
    )
    return replace(options, choices=choices)


def find_running(context: Context, store: ObjectStore) -> str | None:
    """Return the id of the sweep or restore that the task has started and not ended; None without one."""
    running = find_sweep(store, restore_id_for(context, store.uri)).running
    return running or find_started_restore(context, store)


@contextmanager
def ending_sweep(context: Context, open_store: Callable[[], ObjectStore]) -> Iterator[None]:
    """Release the lease of a sweep whose runner has died, or whose task fails for good.

    So others need not wait until it expires. A runner that lives after all ends with its script.
    """
    try:
        yield
    except (RunnerDiedError, *PERMANENT):
        with suppress(TuneRestoreError):  # the first error counts
            store = open_store()
            running = find_sweep(store, restore_id_for(context, store.uri)).running
            if running is not None:
                end_sweep(store, running)
        raise


def conclude(task: AttemptTask, outcome: RunnerOutcome, log: "Logger") -> dict[str, Any]:
    """Return the result of a sweep that has finished, by its script or by a restore; else raise.

    Raises:
        RunnerError: If trials are left; the next try restores them.
        RunnerRefusedError: If a retry would end in the same way.
        InvalidInputError: If the script has made no experiment at the address.
    """
    if task.plan.is_sweep:
        return _conclude_script(task, outcome, log)
    raise_unless_ended(task.plan, outcome)
    summary = commit_restore(task.store, task.plan.restore_id)
    returned = report_commit(task.experiment.address, summary, log=log)
    if not summary.is_done:
        raise RunnerError(f"The sweep has not finished. {summary.headline().rstrip('.')}")
    return returned


def _conclude_script(task: AttemptTask, outcome: RunnerOutcome, log: "Logger") -> dict[str, Any]:
    store, result, cause = task.store, Result(outcome.result), outcome.describe_error()
    release_sweep(store, task.plan.restore_id)
    if result in (Result.REFUSED, Result.FENCED):
        raise RunnerRefusedError(f"The script of {store.uri} was not started: {cause}")
    report = look_at(store)
    if report is None and result is Result.FINISHED:
        raise InvalidInputError(
            f"The script ended with exit code 0, but {store.uri} is not an experiment. Let experiment= "
            "be the storage_path of its RunConfig, a slash, and the name of its RunConfig; "
            "TUNE_RESTORE_STORAGE_PATH and TUNE_RESTORE_NAME hold both for the script."
        )
    if report is None:
        raise RunnerError(f"The script has ended, and {store.uri} holds no trial: {cause}")
    why = f" ({cause})" if cause else ""
    left = "" if report.health is Health.FINISHED else _describe_left(store)
    if left and not (result is Result.FINISHED and _has_spent_its_budget(store)):
        raise RunnerError(f"The sweep {store.uri} has not finished: {left}{why}")
    if result is Result.FAILED:
        raise _failed_at_the_end(store, outcome)
    return report_sweep(task.experiment, log)


def _failed_at_the_end(store: ObjectStore, outcome: RunnerOutcome) -> RunnerRefusedError:
    return RunnerRefusedError(
        f"All trials of {store.uri} have finished, and its script failed after that "
        f"({outcome.describe_error()}). Nothing is left to restore. Put what follows the sweep into a "
        "task of its own, which Airflow can retry"
    )


def look_at(store: ObjectStore) -> ExperimentReport | None:
    """Return a report on the experiment of a sweep whose driver has ended; None if it has no trial.

    Raises:
        StateUnreadableError: If it cannot be read.
    """
    root = list_root(store)
    if not is_experiment(root.entries):
        return None
    report = examine(store, root, stale_after=_AT_ONCE)
    if report.health is Health.UNREADABLE:
        raise StateUnreadableError(report.experiment, report.reason)
    return None if report.health is Health.NOT_STARTED else report


def _describe_left(store: ObjectStore) -> str:
    """Name the trials that did not finish, and count the samples that were never drawn."""
    experiment = read_experiment(store)
    cut_short = {trial.trial_id for trial in experiment.stopped_by_fail_fast}
    left = {
        trial.trial_id: "cut short by fail_fast" if trial.trial_id in cut_short else trial.status
        for trial in experiment.trials
        if trial.trial_id in cut_short or trial.status is not TrialStatus.TERMINATED
    }
    parts = []
    if left:
        named = first_of([f"{trial_id} ({how})" for trial_id, how in left.items()])
        done = share(len(experiment.trials) - len(left), len(experiment.trials), "trial")
        parts.append(f"{done} finished, and {len(left)} did not: {named}")
    if experiment.samples_left:
        parts.append(f"{counted(experiment.samples_left, 'sample')} never drawn")
    return "; ".join(parts) or "its searcher may suggest more"


def _has_spent_its_budget(store: ObjectStore) -> bool:
    """Whether `time_budget_s` has ended the sweep: a restore would draw no sample of it either."""
    experiment = read_experiment(store)
    ended = all(trial.status is TrialStatus.TERMINATED for trial in experiment.trials)
    return ended and is_budget_spent(experiment.state)


def report_sweep(experiment: OpenExperiment, log: "Logger") -> dict[str, Any]:
    """Log how a sweep ended, and return it in the form of a commit without a restore."""
    report = look_at(experiment.store)
    assert report is not None  # noqa: S101  it has finished
    headline = f"{experiment.address}: {report.reason}."
    log.info("%s", headline)
    return {
        "experiment": str(experiment.address),
        "restore_id": None,
        "state_file": report.state_file,
        "samples_left": report.samples_left,
        "trials_run": sum(report.trials.values()),
        "failed": [],
        "paused": [],
        "quarantined": [],
        "headline": headline,
    }
