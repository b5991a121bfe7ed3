"""One attempt of a sweep: its own script, under the lease of the experiment. It does not import Ray."""

import json
import logging
import subprocess
import sys

from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError, TooLargeError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT
from airflow_tune_restore.protocol.kept_lease import HeldStore
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.request import EXIT_REFUSED, Result, RunnerRequest
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.runner.outcome import (
    INTERRUPTED,
    Ending,
    build_outcome,
    now,
    write_outcome,
)
from airflow_tune_restore.runner.script import Script, describe_exit
from airflow_tune_restore.runner.signals import StopRequestedError, StopSignals
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)


class Sweep:
    """Runs the script of a sweep and records how it ended.

    An experiment that has a state is never started again, whoever asks for it: Ray would begin it anew
    beside its own results.
    """

    def __init__(
        self,
        store: ObjectStore,
        request: RunnerRequest,
        stop: StopSignals,
        parent_pid: int | None = None,
    ) -> None:
        self._script = Script(request)
        self._heartbeat = Heartbeat(store, request, parent_pid, before_end=self._script.kill)
        self._store = HeldStore(store, self._heartbeat.check_lately_or_end)
        self._request = request
        self._attempts = AttemptRecords.of(store, request)
        self._stop = stop
        self._started_at = now()

    def run(self) -> Result:
        """Run the script and write the outcome.

        Raises:
            FencedError: If there is a newer attempt; nothing was run.
            LeaseLostError: If the sweep no longer holds the lease; nothing was run.
        """
        self._heartbeat.start()
        try:
            ending = self._run()
            self._stop.ignore()
        finally:
            self._script.kill()
            self._heartbeat.stop()
        self._record(ending)
        return ending.result

    def _run(self) -> Ending:
        try:
            for attempt in self._attempts.numbers():
                if attempt < self._request.attempt:
                    self._attempts.wait_until_over(attempt)
            if state := self._find_state():
                why = f"it has the state {state}, so it is restored and never started again"
                logger.warning("The script is not started: %s.", why)
                return Ending(Result.INTERRUPTED, INTERRUPTED, why)
            if (refusal := self._check_trainable()) is not None:
                return refusal
            self._heartbeat.mark_running()
            self._script.start()
            exit_code = self._script.wait()
        except InvalidInputError as error:
            logger.error("%s", error)  # noqa: TRY400  an error of the user needs no traceback
            return Ending(Result.REFUSED, InvalidInputError.__name__, str(error))
        except StopRequestedError:
            exit_code = self._script.stop()
            how = "it had not started" if exit_code is None else describe_exit(exit_code)
            return Ending(Result.INTERRUPTED, INTERRUPTED, f"the script was stopped; {how}")
        if exit_code:
            return Ending(Result.FAILED, error=describe_exit(exit_code))
        return Ending(Result.FINISHED)

    def _check_trainable(self) -> Ending | None:
        """Return the end of a sweep whose trainable cannot be used here; a later restore needs it.

        In another process: this one does not import Ray.
        """
        request = self._request
        if not request.trainable:
            return None
        command = ["--trainable", request.trainable]
        command += [f"--import={module}" for module in request.imports]
        command += ["--param-space", request.param_space] if request.param_space else []
        timeout = DEFAULT_CHECK_TIMEOUT.total_seconds()
        try:
            done = subprocess.run(  # noqa: S603  the arguments are those of the task
                [sys.executable, "-m", "airflow_tune_restore.runner", "check", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            why = f"the check of its trainable took longer than {timeout:.0f} s"
            return Ending(Result.INTERRUPTED, type(error).__name__, why)
        if done.returncode == 0:
            return None
        output = printable(done.stdout.decode(errors="replace").strip(), NOTE_LENGTH)
        why = output.rpartition("error: ")[2]
        logger.error("The script is not started: %s", why)
        if done.returncode == EXIT_REFUSED:
            return Ending(Result.REFUSED, InvalidInputError.__name__, why)
        return Ending(Result.INTERRUPTED, INTERRUPTED, f"the check of its trainable ended: {why}")

    def _find_state(self) -> str:
        """Return the name of a state that holds a trial, or that cannot be read; "" without one."""
        names = (entry.name for entry in self._store.list_dir() if not entry.is_dir)
        states = filter(layout.is_state_file, names)
        return next((name for name in states if not _is_empty(self._store, name)), "")

    def _record(self, ending: Ending) -> None:
        outcome = build_outcome(self._request, ending, trial=None, started_at=self._started_at)
        write_outcome(self._store, outcome)


def _is_empty(store: ObjectStore, name: str) -> bool:
    """Whether a state holds no trial: its driver died before it had made one."""
    try:
        rows = json.loads(store.get(name, max_bytes=layout.MAX_STATE_BYTES))["trial_data"]
    except (KeyNotFoundError, TooLargeError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(rows, list) and not rows
