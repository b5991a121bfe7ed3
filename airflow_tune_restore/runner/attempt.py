"""One attempt from its request to its outcome."""

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    NoRoomError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import SHARED_ATTEMPT
from airflow_tune_restore.protocol.kept_lease import HeldStore
from airflow_tune_restore.protocol.planned import read_planned
from airflow_tune_restore.protocol.request import Result, RunnerRequest
from airflow_tune_restore.protocol.resources import describe, is_enough
from airflow_tune_restore.runner import needs
from airflow_tune_restore.runner.desk_reader import DeskReader
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.runner.loading import Loaded, load
from airflow_tune_restore.runner.outcome import (
    EXIT_CODES,
    INTERRUPTED,
    PAUSED,
    Ending,
    build_outcome,
    error_of_run,
    find_raised,
    now,
    write_outcome,
)
from airflow_tune_restore.runner.pause import PauseTimer
from airflow_tune_restore.runner.ray_session import connect, is_own_job, join_early
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.room import RoomWatch
from airflow_tune_restore.runner.signals import StopRequestedError, StopSignals
from airflow_tune_restore.runner.tune import private_api
from airflow_tune_restore.runner.worker_lines import WorkerLines
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.runner.tune.controller import AttemptContext

logger = logging.getLogger(__name__)


class Attempt:
    """Runs one attempt and records how it ended."""

    def __init__(
        self,
        store: ObjectStore,
        request: RunnerRequest,
        stop: StopSignals,
        parent_pid: int | None = None,
    ) -> None:
        self._heartbeat = Heartbeat(store, request, parent_pid)
        # a process that thaws must not write over what its successor wrote
        self._store = HeldStore(store, self._heartbeat.check_lately_or_end)
        self._request = request
        self._attempts = AttemptRecords.of(store, request)
        self._stop = stop
        self._timer = PauseTimer(
            self._store, request.pause_at, pause=self._pause, give_up=self._give_up
        )
        self._recording = threading.Lock()
        self._ending: Ending | None = None
        self._is_recorded = False
        self._context: AttemptContext | None = None
        self._needed: dict[str, float] = {}
        self._error_text = ""
        self._started_at = now()

    def run(self) -> Result:
        """Run the attempt and write its outcome.

        Raises:
            FencedError: If there is a newer attempt; nothing was run.
            LeaseLostError: If the restore no longer holds the lease; nothing was run.
        """
        self._heartbeat.start()
        try:
            ending = self._ending = self._run()
            self._stop.ignore()
        finally:
            self._heartbeat.stop()
            if self._context is not None:
                self._context.close()
                shutil.rmtree(self._context.staging, ignore_errors=True)
        if self._context is not None:
            self._context.record_rest(ending)
        self._record_once(ending)
        # last: Ray resets SIGTERM to its default action, and a second one may come at any time. Tune has
        # waited for the trial's actor to end (TuneController.cleanup, 2.60)
        _shut_down()
        return ending.result

    def _run(self) -> Ending:
        ending = self._run_in_window()
        was_asked = ending.result is Result.INTERRUPTED and ending.error_type == INTERRUPTED
        if was_asked and self._stop.is_paused and not self._needed:
            return self._paused(ending.error)
        return ending

    def _paused(self, how: str) -> Ending:
        ended = window.describe_end(self._request.pause_at)
        return Ending(Result.PAUSED, PAUSED, f"the window of this restore ended at {ended}; {how}")

    def _run_in_window(self) -> Ending:
        try:
            if self._timer.start():
                return self._paused("nothing was run")
            if is_own_job(self._request):
                self._join(join_early)
            self._wait_for_earlier()
            self._heartbeat.mark_running()
            loaded = load(self._store, self._request)
            self._context = self._make_context()
            if not self._context.wait_for_work():
                return self._context.judge(was_stopped=False)
            asked = self._ask(self._context, loaded)
            most = needs.most(asked)
            if self._request.sized and not is_enough(self._request.resources, most):
                self._needed = most
                why = f"a trial requests {describe(most)} now, and its pod or job was made for less"
                logger.warning("Nothing is run: %s.", why)
                return Ending(Result.INTERRUPTED, INTERRUPTED, why)
            self._fit(self._context, loaded, asked)
            return self._context.judge(was_stopped=self._stop.received)
        except InvalidInputError as error:
            logger.error("%s", error)  # noqa: TRY400  an error of the user needs no traceback
            return Ending(Result.REFUSED, InvalidInputError.__name__, str(error))
        except NoRoomError as error:
            logger.error("%s", error)  # noqa: TRY400  not a failure
            return Ending(Result.INTERRUPTED, NoRoomError.__name__, str(error))
        except StopRequestedError:
            return Ending(Result.INTERRUPTED, INTERRUPTED, "stopped before the trial ran")
        except Exception as error:
            if self._context is not None and self._context.has_ended:
                logger.warning("Ray failed after all trials had ended", exc_info=True)
                return self._context.judge(was_stopped=self._stop.received)
            # not an error of the trial or the user: the trial stays unfinished, and a retry resumes it
            self._error_text = str(error)
            name, message = error_of_run(error)
            # errors of this package have complete messages
            trace = None if isinstance(error, TuneRestoreError) else find_raised(error)
            logger.error("The runner stopped: %s: %s", name, message, exc_info=trace)  # noqa: TRY400
            return Ending(Result.INTERRUPTED, name, message)

    def _wait_for_earlier(self) -> None:
        for attempt in self._attempts.numbers():
            if attempt < self._request.attempt:
                self._attempts.wait_until_over(attempt)

    def _make_context(self) -> "AttemptContext":
        """Start from the newest whole snapshot of an earlier attempt, or else from the seed."""
        from airflow_tune_restore.runner.tune.experiment_context import ExperimentContext
        from airflow_tune_restore.runner.tune.shared_context import SharedContext
        from airflow_tune_restore.runner.tune.trial_controller import TrialContext

        store, request = self._store, self._request
        snapshot = self._newest_snapshot()
        shared: dict[str, Any] = {
            "store": store,
            "request": request,
            "is_seed": snapshot is None,
            "staging": Path(tempfile.mkdtemp(prefix="tune-restore-")),
            "check_fence": self._heartbeat.check_or_end,
            "check_fence_lately": self._heartbeat.check_lately_or_end,
            "room": RoomWatch.of(request),
            "is_paused": lambda: self._stop.is_paused,
        }
        if request.trial_id == layout.WHOLE_EXPERIMENT:
            planned = read_planned(store, request.restore_id)
            return ExperimentContext(
                **shared,
                source_key=snapshot or planned.base.name or None,
                planned=planned,
                reporter=Reporter(store, request),
                started_at=self._started_at,
            )
        if request.trial_id == layout.SHARED_DRIVER:
            progress = Reporter(store, request, SHARED_ATTEMPT)
            return SharedContext(
                **shared,
                source_key=None,
                reader=DeskReader(store, request, self._heartbeat.join),
                reporter=progress,
                lines=WorkerLines(progress.add_lines),
                leaving=self._heartbeat.leaving,
            )
        reporter = Reporter(store, request) if request.reports else None
        if reporter is not None:
            reporter.start()
        seed = layout.seed_key(request.restore_id, request.trial_id)
        return TrialContext(**shared, source_key=snapshot or seed, reporter=reporter)

    def _newest_snapshot(self) -> str | None:
        request = self._request
        limit = layout.max_snapshot_bytes(request.trial_id)
        for attempt in reversed(self._attempts.numbers()):
            key = layout.snapshot_key(request.restore_id, request.trial_id, attempt)
            if attempt < request.attempt and _is_whole(self._store, key, limit):
                return key
        return None

    def _ask(self, context: "AttemptContext", loaded: Loaded) -> needs.Asked:
        """Return the present resource requests of trials; none on a cluster, whose size is given."""
        return context.ask(loaded) if self._request.address is None else {}

    def _fit(self, context: "AttemptContext", loaded: Loaded, asked: needs.Asked) -> None:
        """Run Ray's own restore with this package's controller, state and staging directory."""
        from airflow_tune_restore.runner.tune import restore

        with ExitStack() as stack:
            stack.push(self._end_ray_early)
            self._stop.raise_if_received()  # the user's code may have swallowed the exception
            if not is_own_job(self._request):
                self._join(lambda request: connect(request, needs.most(asked)))
            # in a run of many, the controller gives up single trials instead
            if self._request.trial_id not in layout.RUNS_OF_MANY:
                for why in context.room.look(lambda: asked).values():
                    raise InvalidInputError(why)
            for owner, name, value in restore.replacements(context):
                stack.enter_context(private_api.replaced(owner, name, value))
            if loaded.has_tuner:
                restore.restore_tuner(context, loaded)
            else:
                why = "ignored" if self._request.ignore_tuner else "missing or damaged"
                logger.warning(
                    "tuner.pkl is %s: the state alone is restored, with Ray's defaults.", why
                )
                restore.restore_state(context, loaded)

    def _join(self, how: Callable[[RunnerRequest], None]) -> None:
        how(self._request)
        self._stop.install()

    def _end_ray_early(self, error: type[BaseException] | None, *_details: object) -> None:
        """End all actors if the run raised an error, so that the outcome is true when it is written."""
        if error is not None:
            _shut_down()
            self._stop.install()

    def _pause(self) -> None:
        """Ask the attempt to stop. Called by the thread of the timer, as `_give_up`."""
        if self._ending is None:
            self._stop.pause()

    def _give_up(self) -> None:
        """End this process: it was asked to pause, and did not.

        Its actors end as when an attempt was overtaken (`Heartbeat.check_or_end`). What the trials have
        reported is in storage; the newest snapshot counts. The trials of a shared driver get no outcomes
        here: while they are written, others would still be trained.
        """
        ending = self._ending or self._paused(
            "it did not stop in time, and the newest snapshot counts"
        )
        logger.warning(
            "This runner did not stop in time; it ends itself: %s.", ending.error or "done"
        )
        saved = self._context.saved_iteration if self._context is not None else None
        # in another thread: a store may hang, and so may an import that the main thread hangs in
        writer = threading.Thread(target=self._try_to_record, args=(ending, saved), daemon=True)
        writer.start()
        writer.join(window.GRACE_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODES[ending.result])

    def _try_to_record(self, ending: Ending, iteration: int | None) -> None:
        """Write the outcome, if the store lets it; without one the attempt counts as silent."""
        try:
            self._record_once(ending, iteration)
        except (TuneRestoreError, OSError) as error:
            logger.error("The outcome could not be written: %s", error)  # noqa: TRY400  expected

    def _record_once(self, ending: Ending, iteration: int | None = None) -> None:
        """Write the outcome, unless another thread has. `iteration` is as for `_record`."""
        with self._recording:
            if not self._is_recorded:
                self._record(ending, iteration=iteration)
                self._is_recorded = True

    def _record(self, ending: Ending, *, iteration: int | None = None) -> None:
        """Write the outcome. `iteration` is the one that is saved, if the trial may have got further."""
        outcome = build_outcome(
            self._request,
            ending,
            trial=self._context.trial if self._context is not None else None,
            started_at=self._started_at,
            resources=self._needed,
            text=self._error_text,
        )
        if iteration is not None:
            outcome = replace(outcome, iteration=iteration)
        write_outcome(self._store, outcome)


def _shut_down() -> None:
    """End a private Ray, or disconnect from a cluster."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def _is_whole(store: ObjectStore, key: str, max_bytes: int) -> bool:
    try:
        body = store.get(key, max_bytes=max_bytes)
        return len(json.loads(body)["trial_data"]) > 0
    except (KeyNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return False
