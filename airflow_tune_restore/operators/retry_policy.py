"""Which failed trials Airflow tries again, and when."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Context, RetryDecision, RetryPolicy

from airflow_tune_restore.exceptions import (
    RayClusterError,
    RunnerDiedError,
    StorageError,
    TrialFailedError,
)
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.protocol.failures import Cause

SOON = timedelta(seconds=30)
FIRST_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(minutes=10)
"""Shorter than `build_restore_plan.DEFAULT_LEASE_TTL`: nothing renews the lease while all tasks wait."""

_CHEAP = frozenset({Cause.ACTOR_DIED, Cause.NODE_LOST, Cause.KILLED})
UNREACHABLE = "no answer of the Ray cluster"
_SLOW = frozenset({Cause.STORAGE, Cause.OUT_OF_MEMORY, UNREACHABLE})


class TrialRetryPolicy(RetryPolicy):
    """Retries what a retry can cure, up to the task's `retries`.

    The same exception at the same place and iteration as in an earlier attempt fails the task at once.
    After a lost node or a dead process the trial is tried again in half a minute. A store or cluster that
    does not answer, and a node without memory, are given time: a minute, doubled at each try, ten at
    most. All else waits for the task's own `retry_delay`.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Decide, by the error of ours behind Airflow's."""
        del max_tries, context
        error = package_error_behind(exception)
        if isinstance(error, TrialFailedError) and error.final:
            return RetryDecision.fail(error.final)
        cause = _cause(error)
        if cause in _CHEAP:
            return RetryDecision.retry(SOON, f"{cause}: tried again soon")
        if cause in _SLOW:
            wait = min(FIRST_WAIT * 2 ** min(try_number - 1, 10), LONGEST_WAIT)
            return RetryDecision.retry(wait, f"{cause}: tried again in {wait}")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return its options: there are none."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> "TrialRetryPolicy":
        """Make it anew."""
        del data
        return cls()


TRIAL_RETRY_POLICY = TrialRetryPolicy()
"""The default of `RestoreTrialOperator`."""


def _cause(error: BaseException | None) -> str:
    if isinstance(error, TrialFailedError | RunnerDiedError):
        return error.cause
    if isinstance(error, RayClusterError):
        return UNREACHABLE
    return Cause.STORAGE.value if isinstance(error, StorageError) else ""
