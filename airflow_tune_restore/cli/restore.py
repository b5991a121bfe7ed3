"""Plans, runs and commits one restore: `tune-restore restore`."""

import contextlib
import getpass
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from airflow_tune_restore.cli.lease import ask_user, name_command, show_waits
from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.cli.runs import TrialRuns
from airflow_tune_restore.cli.trainables import RunOptions
from airflow_tune_restore.exceptions import LeaseLostError
from airflow_tune_restore.launch.base import ChecksTrainable, Launcher
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.check import CheckAnswer
from airflow_tune_restore.protocol.kept_lease import keep_lease
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable
from airflow_tune_restore.protocol.window import describe_end, is_over
from airflow_tune_restore.restore.check_request import build_check_request
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.restore.prepare import prepare_continued_search, prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.recipe import Recipe
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore

TTL_SECONDS = 60.0
"""A runner exits if it could not write for two thirds of it: a laptop may sleep for that long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How the shell restores an experiment.

    Args:
        prepare: Which trials are run, and how; it has recipes.
        run: The code that runners run, where the experiment's recipe does not give it.
        address: Ray cluster that runners connect to; None: they have their own Ray.
        break_lease: Whether the user may break the lease of another restore.
        yes: Whether the user is not asked before.
    """

    prepare: PrepareOptions
    run: RunOptions
    address: str | None = None
    break_lease: bool = False
    yes: bool = False

    def settings(self, recipe: Recipe) -> RunnerSettings:
        """Return the settings of the runners of an experiment with this recipe."""
        own = {name: getattr(self.run, name) for name in ("param_space", "search_alg", "imports")}
        given = recipe.over(own)
        return RunnerSettings(
            trainable=recipe.trainable,
            param_space=given["param_space"],
            search_alg=given["search_alg"],
            imports=tuple(given["imports"] or ()),
            address=self.address,
            # a private Ray needs none: it inherits the environment of its runner
            runtime_env=(recipe.runtime_env or {}) if self.address else {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingToRestore:
    """An experiment that needs no restore: the reason, and the ids of its quarantined trials."""

    reason: str
    quarantined: list[str]


def restore_experiment(
    store: ObjectStore,
    build_launcher: Callable[[Recipe], Launcher],
    options: RestoreOptions,
    progress: Progress,
) -> CommitSummary | NothingToRestore | None:
    """Restore the experiment at the store's root, then draw the samples that are left.

    `build_launcher` returns the place where the experiment of a recipe runs. The summary is None if
    another restore has done the work meanwhile.

    Raises:
        ExperimentRunningError: If it is running.
        LeaseHeldError: If another restore holds its lease.
        UnknownTrainableError: If no trainable is given for it.
        InvalidInputError: If trainable, param_space or search_alg do not fit, or if only samples are left
            that no searcher can draw; nothing was started.
    """
    base_id = f"shell-{store.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    ask_holder = ask_user(progress, yes=options.yes) if options.break_lease else name_command
    options = replace(options, prepare=replace(options.prepare, ask_holder=ask_holder))
    prepared = prepare_restore(store, base_id, options.prepare)
    if isinstance(prepared, str):
        return _nothing_to_restore(store, prepared, options, progress)
    for warning in prepared.plan.warnings:
        progress.say(f"note: {printable(warning, NOTE_LENGTH)}")
    recipe = prepared.options.recipe
    assert recipe is not None  # noqa: S101  `options.prepare` has recipes
    # a recipe in storage is read once: what was checked is what runs
    prepared = replace(prepared, options=replace(prepared.options, recipes=None))
    launcher, settings = build_launcher(recipe), options.settings(recipe)
    if prepared.plan.has_work or prepared.plan.samples_left or prepared.nothing_to_do:
        answer = check_trainable(prepared, launcher, settings, options.run.check_timeout)
        if answer is not None and answer.message:
            progress.say(f"note: {answer.message}")
    # a place that cannot be used is refused now, too
    settings = launcher.settings(settings)
    restore = _Restore(store, launcher, settings, options.run.parallel, progress)
    done = restore.carry_out(prepared)
    if done is None and prepared.nothing_to_do:
        return _nothing_to_restore(store, prepared.nothing_to_do, options, progress)
    if done is None or restore.was_stopped or not _has_search(done):
        return done
    if is_over(options.prepare.window_end, store.now()):
        return done
    # this process wrote the state just now, so silence does not matter
    known_dead = replace(prepared.options, stale_after=timedelta(0))
    rest = prepare_continued_search(store, f"{base_id}-samples", known_dead)
    if isinstance(rest, str):
        return done
    progress.say(f"{done.headline()} Drawing the samples that are left.")
    drawn = restore.carry_out(rest)
    return done if drawn is None else done.then(drawn)


def _has_search(done: CommitSummary) -> bool:
    """Whether samples are left to draw now: not by a run of all trials, nor among chosen ones.

    If their searcher is lost, the headline names the next step.
    """
    is_left = bool(done.samples_left) and not done.is_whole_experiment
    return is_left and not (done.chosen or done.searcher_lost)


def _nothing_to_restore(
    store: ObjectStore, reason: str, options: RestoreOptions, progress: Progress
) -> NothingToRestore:
    progress.say(reason)
    ledger, _ = read_ledger(store)
    held = ledger.quarantined(options.prepare.choices.max_attempts)
    return NothingToRestore(reason=reason, quarantined=list(held))


def check_trainable(
    prepared: PreparedRestore, launcher: Launcher, settings: RunnerSettings, timeout: timedelta
) -> CheckAnswer | None:
    """Refuse a wrong trainable before anything is leased or started; None if only the runner can.

    Raises:
        InvalidInputError: If trainable, param_space or search_alg do not fit.
        RunnerError: If that could not be checked in time.
    """
    if not isinstance(launcher, ChecksTrainable):
        return None
    (answer,) = launcher.check(build_check_request(settings, [prepared]), timeout)
    if (error := answer.error()) is not None:
        raise error
    return answer


class _Restore:
    """Carries out prepared restores, one after another."""

    def __init__(
        self,
        store: ObjectStore,
        launcher: Launcher,
        settings: RunnerSettings,
        parallel: int | None,
        progress: Progress,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._settings = settings
        self._parallel = parallel
        self._progress = progress
        self.was_stopped = False

    def carry_out(self, prepared: PreparedRestore) -> CommitSummary | None:
        """Start, run and commit a restore; first commit what a dead restore has left."""
        try:
            plan, settled = start_restore(
                prepared,
                holder=holder(),
                ttl_seconds=TTL_SECONDS,
                on_wait=show_waits(self._progress),
            )
        except KeyboardInterrupt:  # no attempt was started
            with contextlib.suppress(LeaseLostError):
                lease.release(self._store, lease.check_held(self._store, prepared.plan.restore_id))
            raise
        if settled is not None:
            self._progress.say(f"A restore that died was committed first. {settled.headline()}")
        if plan is None:
            return settled
        work = counted(len(plan.to_run), "trial") + " to run"
        work += ", samples to draw" * plan.continues_search
        if plan.pause_at:
            work += f"; what runs is paused at {describe_end(plan.pause_at)}"
        self._progress.say(f"Restore {plan.restore_id}: {work}.")
        with keep_lease(self._store, plan.restore_id):
            settings, parallel = self._settings, self._parallel
            runs = TrialRuns(self._store, plan, self._launcher, settings, parallel, self._progress)
            self._progress.has_started = True
            runs.run_all()
            self.was_stopped = runs.was_stopped
        return commit_restore(self._store, plan.restore_id)


def holder() -> str:
    """Return the name of this process for the lease, to be read by people."""
    return f"tune-restore of {getpass.getuser()} on {socket.gethostname()}, pid {os.getpid()}"
