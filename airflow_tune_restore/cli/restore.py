"""Plan, run and commit one restore in this process: what `tune-restore restore` does."""

import getpass
import logging
import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.exceptions import (
    TuneRestoreError,
)
from airflow_tune_restore.launch.local import LocalLauncher, RunnerProcess
from airflow_tune_restore.restore import lease
from airflow_tune_restore.restore.attempts import claim_attempt, read_outcome, record_end
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.draft import DraftOptions, draft_restore, start_draft
from airflow_tune_restore.restore.ledger import memory_to_ask, read_history
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.request import RunnerProgress
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore

TTL_SECONDS = 30.0
_LAST_LINES = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What the user chose on the command line."""

    draft: DraftOptions
    trainable: str
    param_space: str | None
    address: str | None
    imports: tuple[str, ...]
    parallel: int


def restore_experiment(
    store: ObjectStore, options: RestoreOptions, progress: Progress
) -> CommitSummary | None:
    """Restore the experiment at the store's root.

    Returns:
        What was done, or None if there was nothing to do.

    Raises:
        ExperimentRunningError: If it is alive.
        LeaseHeldError: If another restore is at work on it.
        InvalidInputError: If trainable or param_space do not fit; nothing was started.
    """
    base_id = f"shell-{store.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    draft = draft_restore(store, base_id, options.draft)
    if isinstance(draft, str):
        progress.say(draft)
        return None
    launcher = LocalLauncher(pythonpath=[os.getcwd()])  # noqa: PTH109  a string for PYTHONPATH
    if draft.plan.to_run:
        # a wrong trainable is found out before anything is leased or started
        launcher.check(
            trainable=options.trainable,
            trainable_name=draft.plan.trainable_name,
            param_space=options.param_space,
            imports=options.imports,
            experiment=draft.plan.experiment,
        )
    plan, settled = start_draft(draft, options.draft, holder=holder(), ttl_seconds=TTL_SECONDS)
    if settled is not None:
        progress.say(f"A restore that died was committed first. {settled.headline()}")
    if plan is None:
        return settled
    restore_id = plan.restore_id
    progress.say(f"Restore {restore_id}: {len(plan.to_run)} trials to run.")
    with _renewed(store, restore_id):
        _Runs(store, plan, options, launcher, progress).run_all()
    return commit_restore(store, restore_id)


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

    def run_all(self) -> None:
        """Run every trial of the plan; Ctrl-C stops them with their snapshots saved."""
        with ThreadPoolExecutor(self._options.parallel) as pool:
            try:
                list(pool.map(self._run, self._plan.to_run))
            except KeyboardInterrupt:
                self._progress.say("Stopping: snapshots are saved, and what there is is committed.")
                self._stopping.set()
                for process in self._processes:
                    process.stop()

    def _run(self, trial: TrialPlan) -> None:
        """Run one trial to its end; how it ended is in its outcome record."""
        if self._stopping.is_set():
            return
        history = read_history(self._store, self._plan.restore_id, trial.trial_id)
        memory = memory_to_ask(self._plan, trial.trial_id, history)
        if memory is not None:
            self._progress.say(_describe_memory(trial, memory, self._options.address))
        request = claim_attempt(
            self._store,
            self._plan,
            trial.trial_id,
            memory=memory if self._options.address is not None else None,
            trainable=self._options.trainable,
            param_space=self._options.param_space,
            address=self._options.address,
            imports=self._options.imports,
        )
        self._progress.start(trial)
        process = self._launcher.start(request)
        self._processes.append(process)
        last: deque[str] = deque(maxlen=_LAST_LINES)
        for line in process.lines():
            last.append(line)
            reported = RunnerProgress.from_line(line)
            if reported is None:
                self._progress.say(f"{trial.trial_id} | {line}")
            else:
                self._progress.advance(trial.trial_id, reported)
        exit_code = process.wait()
        ended = read_outcome(self._store, self._plan.restore_id, trial.trial_id, request.attempt)
        if ended is None:
            record_end(self._store, request, exit_code, "\n".join(last))
        self._progress.end(trial.trial_id, ended)


def _describe_memory(trial: TrialPlan, memory: float, address: str | None) -> str:
    text = f"Trial {trial.trial_id} ran out of memory"
    if address is None:
        return f"{text}; a private Ray cannot be asked for more of it."
    return f"{text}: asking for {memory / 1024**3:.1f} GiB."


@contextmanager
def _renewed(store: ObjectStore, restore_id: str) -> Iterator[None]:
    """Keep the lease alive between trials, too."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(TTL_SECONDS / 5):
            try:
                lease.renew(store, lease.check_held(store, restore_id))
            except TuneRestoreError as error:
                logger.warning("The lease could not be renewed: %s", error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
