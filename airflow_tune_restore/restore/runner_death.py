"""A runner that exited without an outcome: what is recorded of it, and the error to raise."""

from collections.abc import Sequence

from airflow_tune_restore.exceptions import OvertakenError, RunnerDiedError
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.request import EXIT_FENCED, RunnerRequest
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.base import ObjectStore

LAST_LINES = 5
"""How many of a runner's last lines are kept, in case it exits without an outcome."""


def record_death(
    store: ObjectStore,
    plan: RestorePlan,
    request: RunnerRequest,
    exit_code: int | None,
    last_lines: Sequence[str],
) -> RunnerDiedError:
    """Keep what was seen of a runner that ended without an outcome, and return the error to raise.

    Raises:
        OvertakenError: If another try of the task runs the trial.
        LeaseLostError: If another restore is at work.
    """
    said = "\n".join(last_lines)
    AttemptRecords.of(store, request).record_exit(request.attempt, exit_code, said)
    refuse_overtaken(store, plan, request, exit_code)
    failure = classify_exit(exit_code, said)
    cause = failure.cause if failure is not None else Cause.UNKNOWN
    ended = "" if exit_code is None else f"It ended with exit code {exit_code}. "
    words = f"{ended}It last said: {' | '.join(last_lines)}"
    return RunnerDiedError(plan.experiment, request.trial_id, words, cause.value)


def refuse_overtaken(
    store: ObjectStore, plan: RestorePlan, request: RunnerRequest, exit_code: int | None
) -> None:
    """Raise if a runner that left no outcome ended because somebody else has taken over.

    Raises:
        OvertakenError: If another try of the task runs the trial.
        LeaseLostError: If another restore is at work.
    """
    newest = AttemptRecords(store, plan.restore_id, request.trial_id).newest()
    if newest > request.attempt:
        raise OvertakenError(plan.experiment, request.trial_id, request.attempt, newest)
    if exit_code == EXIT_FENCED:
        lease.check_held(store, plan.restore_id)
