"""Runners that exited without an outcome: record the exit, and find the error to raise."""

import signal
from collections.abc import Sequence

from airflow_tune_restore.exceptions import (
    OvertakenError,
    RunnerDiedError,
    RunnerError,
    name_trial,
)
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.printable import shortened
from airflow_tune_restore.protocol.request import EXIT_FENCED, RunnerRequest
from airflow_tune_restore.restore.paused import RestorePausedError, is_window_over, paused_error
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore

LAST_LINES = 5
"""How many of the last lines of its output are recorded."""

_SHOWN = 1000
"""Characters of them in an error."""

_SHELL_SIGNALS = 128


def record_death(
    store: ObjectStore,
    plan: RestorePlan,
    request: RunnerRequest,
    exit_code: int | None,
    last_lines: Sequence[str],
) -> RunnerError | RestorePausedError:
    """Record the exit of a runner, and return the error to raise. Raises as `refuse_overtaken`.

    A job or pod without an exit code and without a heartbeat never started: it costs no attempt. After
    the end of the window, no retry goes on: the trial is paused.
    """
    output, records = "\n".join(last_lines), AttemptRecords.of(store, request)
    was_started = exit_code is not None or records.has_begun(request.attempt)
    if was_started:
        records.record_exit(request.attempt, exit_code, output)
    refuse_overtaken(store, plan, request, exit_code)
    if is_window_over(store, plan):
        return paused_error(plan, request.trial_id)
    if not was_started:
        whole = "The whole-experiment run"
        unit = (
            whole if request.trial_id == layout.WHOLE_EXPERIMENT else name_trial(request.trial_id)
        )
        unit = unit[0].upper() + unit[1:]
        return RunnerError(f"{unit} of {plan.experiment} was not started: {' | '.join(last_lines)}")
    failure = classify_exit(exit_code, output)
    cause = failure.cause if failure is not None else Cause.UNKNOWN
    exited = "" if exit_code is None else f"{_describe_exit(exit_code)}; "
    shown = shortened(" | ".join(last_lines), _SHOWN) or "(none)"
    reason = f"{exited}its last lines: {shown}"
    attempt = request.attempt
    return RunnerDiedError(plan.experiment, request.trial_id, reason, cause.value, attempt)


def _describe_exit(exit_code: int) -> str:
    """Return an exit code in words: shells and containers add 128 to the number of a signal."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL_SIGNALS
    try:
        return f"{signal.Signals(number).name} ended it (exit code {exit_code})"
    except ValueError:
        return f"its exit code was {exit_code}"


def refuse_overtaken(
    store: ObjectStore, plan: RestorePlan, request: RunnerRequest, exit_code: int | None
) -> None:
    """Raise if the runner exited because another process has taken over.

    Raises:
        OvertakenError: If another try of the task runs the trial.
        LeaseLostError: If another restore is running.
    """
    newest = AttemptRecords(store, plan.restore_id, request.trial_id).newest()
    if newest > request.attempt:
        raise OvertakenError(plan.experiment, request.trial_id, request.attempt, newest)
    if exit_code == EXIT_FENCED:
        lease.check_held(store, plan.restore_id)
