"""Plan, run and commit one restore in this process: what `tune-restore restore` does."""

import getpass
import logging
import os
import secrets
import socket
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta

from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import RunnerProcess
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.request import RunnerProgress
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.ledger import memory_to_ask, read_history
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import (
    PreparedRestore,
    PrepareOptions,
    prepare_continued_search,
    prepare_restore,
)
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore

TTL_SECONDS = 60.0
"""A runner ends itself when it was silent for two thirds of it: a laptop may stall for that long."""
_LAST_LINES = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What the user chose on the command line."""

    prepare: PrepareOptions
    trainable: str
    param_space: str | None
    search_alg: str | None
    address: str | None
    imports: tuple[str, ...]
    parallel: int


def restore_experiment(
    store: ObjectStore, options: RestoreOptions, progress: Progress
) -> CommitSummary | None:
    """Restore the experiment at the store's root, then draw what samples are left.

    Returns:
        What was done, or None if there was nothing to do.

    Raises:
        ExperimentRunningError: If it is alive.
        LeaseHeldError: If another restore is at work on it.
        InvalidInputError: If trainable, param_space or search_alg do not fit, or if only samples are left
            that nobody can draw; nothing was started.
    """
    base_id = f"shell-{store.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    draft = prepare_restore(store, base_id, options.prepare)
    if isinstance(draft, str):
        progress.say(draft)
        return None
    for warning in draft.plan.warnings:
        progress.say(f"note: {printable(warning, NOTE_LENGTH)}")
    launcher = LocalLauncher(pythonpath=[os.getcwd()])  # noqa: PTH109  a string for PYTHONPATH
    if draft.plan.has_work:
        # a wrong trainable is found out before anything is leased or started
        launcher.check(
            trainable=options.trainable,
            trainable_name=draft.plan.trainable_name,
            param_space=options.param_space,
            search_alg=options.search_alg if draft.experiment.searcher_lost else None,
            imports=options.imports,
            experiment=draft.plan.experiment,
            ignore_tuner=draft.plan.ignore_tuner,
        )
    run = _Restore(store, options, launcher, progress)
    done = run.carry_out(draft)
    if done is None or done.is_whole_experiment or not done.samples_left or run.was_stopped:
        return done
    if done.searcher_lost:  # its headline names what to do
        return done
    known_dead = replace(options.prepare, stale_after=timedelta(0))  # it was we who wrote just now
    rest = prepare_continued_search(store, f"{base_id}-samples", known_dead)
    if isinstance(rest, str):
        return done
    progress.say(f"{done.headline()} Drawing the samples that are left.")
    drawn = run.carry_out(rest)
    return done if drawn is None else done.then(drawn)


class _Restore:
    """Carries out drafts, one after another."""

    def __init__(
        self,
        store: ObjectStore,
        options: RestoreOptions,
        launcher: LocalLauncher,
        progress: Progress,
    ) -> None:
        self._store = store
        self._options = options
        self._launcher = launcher
        self._progress = progress
        self.was_stopped = False

    def carry_out(self, draft: PreparedRestore) -> CommitSummary | None:
        """Start, run and commit one draft; what a dead restore had left is committed first."""
        plan, settled = start_restore(
            draft, self._options.prepare, holder=holder(), ttl_seconds=TTL_SECONDS
        )
        if settled is not None:
            self._progress.say(f"A restore that died was committed first. {settled.headline()}")
        if plan is None:
            return settled
        what = f"{len(plan.to_run)} trials to run" + (", samples to draw" * plan.continues_search)
        self._progress.say(f"Restore {plan.restore_id}: {what}.")
        with lease.kept(self._store, plan.restore_id, TTL_SECONDS):
            runs = _Runs(self._store, plan, self._options, self._launcher, self._progress)
            runs.run_all()
            self.was_stopped = runs.was_stopped
        return commit_restore(self._store, plan.restore_id)


def holder() -> str:
    """Say who takes a lease, for people."""
    return f"tune-restore of {getpass.getuser()} on {socket.gethostname()}, pid {os.getpid()}"


class _Runs:
    """The trials of one restore, some at a time."""

    def __init__(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        options: RestoreOptions,
        launcher: LocalLauncher,
        progress: Progress,
    ) -> None:
        self._store = store
        self._plan = plan
        self._options = options
        self._launcher = launcher
        self._progress = progress
        self._processes: list[RunnerProcess] = []
        self._stopping = threading.Event()

    @property
    def was_stopped(self) -> bool:
        """Whether the user has stopped it."""
        return self._stopping.is_set()

    def run_all(self) -> None:
        """Run every trial of the plan, or the one run of all; Ctrl-C saves their snapshots first."""
        units = [trial.trial_id for trial in self._plan.to_run]
        if self._plan.is_whole_experiment:
            units = [layout.WHOLE_EXPERIMENT] if self._plan.has_work else []
        with ThreadPoolExecutor(self._options.parallel) as pool:
            try:
                list(pool.map(self._try, units))
            except KeyboardInterrupt:
                self._progress.say("Stopping: snapshots are saved, and what there is is committed.")
                self._stopping.set()
                for process in self._processes:
                    process.stop()

    def _try(self, unit: str) -> None:
        """Run one trial, or all; what cannot be run keeps no other from running and being committed."""
        try:
            self._run(unit)
        except TuneRestoreError as error:
            logger.error("%s: %s", unit, printable(str(error)))  # noqa: TRY400  said plainly

    def _run(self, unit: str) -> None:
        """Run one trial, or all, to the end; how it ended is in the outcome records."""
        if self._stopping.is_set():
            return
        history = read_history(self._store, self._plan.restore_id, unit)
        memory = memory_to_ask(self._plan, unit, history)
        if memory is not None:
            self._progress.say(_describe_memory(unit, memory, self._options.address))
        request = claim_attempt(
            self._store,
            self._plan,
            unit,
            RunnerSettings(
                trainable=self._options.trainable,
                param_space=self._options.param_space,
                search_alg=self._options.search_alg,
                address=self._options.address,
                imports=self._options.imports,
            ),
            memory=memory if self._options.address is not None else None,
        )
        planned = [t for t in self._plan.to_run if unit in (t.trial_id, layout.WHOLE_EXPERIMENT)]
        for trial in planned:
            self._progress.start(trial)
        process = self._launcher.start(request)
        self._processes.append(process)
        if self._stopping.is_set():  # asked for just now: whoever stops may not have seen it
            process.stop()
        last: deque[str] = deque(maxlen=_LAST_LINES)
        for line in process.lines():
            last.append(line)
            reported = RunnerProgress.from_line(line)
            if reported is None:
                self._progress.say(line if unit == layout.WHOLE_EXPERIMENT else f"{unit} | {line}")
            else:
                self._progress.advance(reported.trial_id, reported)
        exit_code = process.wait()
        how = AttemptRecords(self._store, self._plan.restore_id, unit).outcome(request.attempt)
        if how is None:
            AttemptRecords.of(self._store, request).record_exit(
                request.attempt, exit_code, "\n".join(last)
            )
        for trial in planned:
            ended = AttemptRecords(self._store, self._plan.restore_id, trial.trial_id).outcome()
            self._progress.end(trial.trial_id, ended)


def _describe_memory(trial_id: str, memory: float, address: str | None) -> str:
    text = f"Trial {trial_id} ran out of memory"
    if address is None:
        return f"{text}; a private Ray cannot be asked for more of it."
    return f"{text}: asking for {memory / 1024**3:.1f} GiB."
