"""One attempt from its request to its outcome."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    NoRoomError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result, RunnerRequest
from airflow_tune_restore.protocol.resources import describe, is_enough
from airflow_tune_restore.runner import needs
from airflow_tune_restore.runner.heartbeat import Heartbeat
from airflow_tune_restore.runner.loading import Loaded, load
from airflow_tune_restore.runner.outcome import INTERRUPTED, build_outcome, error_of_run, now
from airflow_tune_restore.runner.ray_session import connect, is_own_job, join_early
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.room import RoomWatch
from airflow_tune_restore.runner.signals import StopSignals, ToldToStopError
from airflow_tune_restore.runner.tune import private_api
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.runner.tune.controller import Scope

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
        self._store = store
        self._request = request
        self._stop = stop
        self._heartbeat = Heartbeat(store, request, parent_pid)
        self._scope: Scope | None = None
        self._needed: dict[str, float] = {}
        self._text = ""
        self._started_at = now()

    def run(self) -> Result:
        """Run it.

        Raises:
            FencedError: If a newer attempt runs the trial; nothing was written.
            LeaseLostError: If the restore no longer holds the lease; nothing was written.
        """
        self._heartbeat.start()
        try:
            result, error = self._run()
            self._stop.ignore()
        finally:
            self._heartbeat.stop()
            if self._scope is not None:
                self._scope.close()
                shutil.rmtree(self._scope.staging, ignore_errors=True)
        self._record(result, error)
        # last: Ray gives SIGTERM back its default action, and a second one may come any time. Tune has
        # waited for the trial's actor to end (TuneController.cleanup, 2.60)
        _shut_down()
        return result

    def _run(self) -> tuple[Result, tuple[str, str]]:
        """Return the result, and type and message of an error."""
        try:
            if is_own_job(self._request):
                self._join(join_early)
            self._wait_for_earlier()
            self._heartbeat.mark_running()
            loaded = load(self._store, self._request)
            self._scope = _make_scope(self._store, self._request, self._heartbeat, self._started_at)
            asked = self._ask(self._scope, loaded)
            most = needs.most(asked)
            if self._request.sized and not is_enough(self._request.resources, most):
                self._needed = most
                why = f"a trial asks for {describe(most)} now, and its place was made for less"
                logger.warning("Nothing is run here: %s.", why)
                return Result.INTERRUPTED, (INTERRUPTED, why)
            self._fit(self._scope, loaded, asked)
            return self._scope.judge(told_to_stop=self._stop.came)
        except InvalidInputError as error:
            logger.error("%s", error)  # noqa: TRY400  a user's mistake needs no traceback
            return Result.REFUSED, ("InvalidInputError", str(error))
        except NoRoomError as error:
            logger.error("%s", error)  # noqa: TRY400  nothing broke
            return Result.INTERRUPTED, (NoRoomError.__name__, str(error))
        except ToldToStopError:
            return Result.INTERRUPTED, ("Interrupted", "told to stop before the trial ran")
        except Exception as error:
            if self._scope is not None and self._scope.has_ended:
                logger.warning("Ray failed after everything had ended", exc_info=True)
                return self._scope.judge(told_to_stop=self._stop.came)
            # neither the trial's fault nor the user's: it stays unfinished, a retry goes on from here
            needs_trace = not isinstance(error, TuneRestoreError)  # ours are sentences
            self._text = str(error)
            name, message = error_of_run(error)
            logger.log(
                *(logging.ERROR, "The runner could not go on: %s: %s", name, message),
                exc_info=needs_trace,
            )
            return Result.INTERRUPTED, (name, message)

    def _wait_for_earlier(self) -> None:
        request = self._request
        for attempt in AttemptRecords(self._store, request.restore_id, request.trial_id).numbers():
            if attempt < request.attempt:
                AttemptRecords(self._store, request.restore_id, request.trial_id).wait_until_over(
                    attempt
                )

    def _ask(self, scope: "Scope", loaded: Loaded) -> needs.Asked:
        """Return what trials ask for now; nothing on a cluster, which is as large as it is."""
        if self._request.address is not None:
            return {}
        return needs.ask(loaded.trainable, needs.read_rows(scope), loaded.param_space)

    def _fit(self, scope: "Scope", loaded: Loaded, asked: needs.Asked) -> None:
        """Run Ray's own restore with the controller, the state and the staging directory ours."""
        from airflow_tune_restore.runner.tune import restore

        with ExitStack() as stack:
            stack.push(self._end_ray_early)
            if not is_own_job(self._request):
                self._join(lambda request: connect(request, needs.most(asked)))
            if (
                self._request.trial_id != layout.WHOLE_EXPERIMENT
            ):  # of many, the controller gives up one
                for why in scope.room.look(lambda: asked).values():
                    raise InvalidInputError(why)
            for owner, name, value in restore.replacements(scope):
                stack.enter_context(private_api.replaced(owner, name, value))
            if loaded.has_tuner:
                restore.restore_tuner(scope, loaded)
            else:
                logger.warning(
                    "tuner.pkl is %s: restoring from the state alone, with Ray's defaults.",
                    "ignored" if self._request.ignore_tuner else "missing or damaged",
                )
                restore.restore_state(scope, loaded)

    def _join(self, how: Callable[[RunnerRequest], None]) -> None:
        how(self._request)
        self._stop.install()

    def _end_ray_early(self, error: type[BaseException] | None, *_details: object) -> None:
        """Leave no actor behind when the run broke off: what is recorded then must be true at once."""
        if error is not None:
            _shut_down()
            self._stop.install()

    def _record(self, result: Result, error: tuple[str, str]) -> None:
        request = self._request
        outcome = build_outcome(
            request,
            result,
            error,
            trial=self._scope.trial if self._scope is not None else None,
            started_at=self._started_at,
            ray_version=private_api.version(),
            resources=self._needed,
            text=self._text,
        )
        key = layout.outcome_key(request.restore_id, request.trial_id, request.attempt)
        self._store.put(key, outcome.to_json())


def _shut_down() -> None:
    """End a private Ray, or leave a cluster."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def _make_scope(
    store: ObjectStore, request: RunnerRequest, heartbeat: Heartbeat, started_at: str
) -> "Scope":
    """Choose what to start from: the newest whole snapshot of an earlier attempt, or the seed."""
    from airflow_tune_restore.runner.tune.experiment_controller import ExperimentScope
    from airflow_tune_restore.runner.tune.trial_controller import TrialScope

    is_experiment = request.trial_id == layout.WHOLE_EXPERIMENT
    planned = _read_plan(store, request) if is_experiment else {}
    seed = layout.seed_key(request.restore_id, request.trial_id)
    snapshot = _newest_snapshot(store, request)
    shared: dict[str, Any] = {
        "store": store,
        "request": request,
        "source_key": snapshot or (planned["base"]["name"] or None if is_experiment else seed),
        "is_seed": snapshot is None,
        "staging": Path(tempfile.mkdtemp(prefix="tune-restore-")),
        "check_fence": heartbeat.check_or_end,
        "room": RoomWatch.of(request),
    }
    if not is_experiment:
        reporter = Reporter(store, request) if request.reports else None
        if reporter is not None:
            reporter.start()
        return TrialScope(**shared, reporter=reporter)
    reporter = Reporter(store, request)
    return ExperimentScope(**shared, planned=planned, reporter=reporter, started_at=started_at)


def _read_plan(store: ObjectStore, request: RunnerRequest) -> dict[str, Any]:
    key = layout.plan_key(request.restore_id)
    plan: dict[str, Any] = json.loads(store.get(key, max_bytes=layout.MAX_PLAN_BYTES))
    return plan


def _newest_snapshot(store: ObjectStore, request: RunnerRequest) -> str | None:
    """Return the key of the newest whole snapshot of an earlier attempt."""
    for attempt in reversed(AttemptRecords(store, request.restore_id, request.trial_id).numbers()):
        key = layout.snapshot_key(request.restore_id, request.trial_id, attempt)
        limit = layout.max_snapshot_bytes(request.trial_id)
        if attempt < request.attempt and _is_whole(store, key, limit):
            return key
    return None


def _is_whole(store: ObjectStore, key: str, max_bytes: int) -> bool:
    try:
        body = store.get(key, max_bytes=max_bytes)
        return len(json.loads(body)["trial_data"]) > 0
    except (KeyNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return False
