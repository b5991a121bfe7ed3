"""Decides which failed trials Airflow retries, and when."""

from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context

from airflow_tune_restore.exceptions import (
    RayClusterError,
    RunnerDiedError,
    StorageError,
    TrialFailedError,
)
from airflow_tune_restore.hooks.airflow_errors import package_error_behind
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.version_compat import (
    RetryDecision,
    RetryPolicy,
    keep_default_policy,
    policy_arguments,
)

SHORT_DELAY = timedelta(seconds=30)
FIRST_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(minutes=10)
"""Shorter than `prepare_restores.DEFAULT_LEASE_TTL`: the lease is not renewed while all tasks wait."""

UNREACHABLE = "no response from the Ray cluster"
_PROCESS_LOST = frozenset({Cause.ACTOR_DIED, Cause.NODE_LOST, Cause.KILLED})
_SERVICE_UNAVAILABLE = frozenset({Cause.STORAGE, Cause.OUT_OF_MEMORY, UNREACHABLE})


class TrialRetryPolicy(RetryPolicy):
    """Retries failures that a retry can cure, up to the task's `retries`.

    The same exception at the same place and iteration as in an earlier attempt fails the task at once. A
    lost node or a dead process is retried after half a minute. A store or cluster that does not respond,
    and a node without memory, get more time: one minute, doubled at each try, at most ten. All other
    failures are retried after the task's own `retry_delay`.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Decide by this package's error behind Airflow's exception."""
        del max_tries, context
        error = package_error_behind(exception)
        if isinstance(error, TrialFailedError) and error.final:
            return RetryDecision.fail(error.final)
        cause = _cause(error)
        if cause in _PROCESS_LOST:
            return RetryDecision.retry(SHORT_DELAY, f"{cause}: retried in {SHORT_DELAY}")
        if cause in _SERVICE_UNAVAILABLE:
            wait = min(FIRST_WAIT * 2 ** min(try_number - 1, 10), LONGEST_WAIT)
            return RetryDecision.retry(wait, f"{cause}: retried in {wait}")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return its options: it has none."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> "TrialRetryPolicy":
        """Build it from its options."""
        del data
        return cls()


TRIAL_RETRY_POLICY = TrialRetryPolicy()
"""The default of `RestoreTrialOperator`."""


class RetryPolicyOperator(BaseOperator):
    """Base of the operators that run a trial: they have a retry policy of their own.

    Args:
        retry_policy: None for Airflow's plain retries.
        **kwargs: Arguments of every operator.
    """

    def __init__(
        self, *, retry_policy: RetryPolicy | None = TRIAL_RETRY_POLICY, **kwargs: Any
    ) -> None:
        super().__init__(**policy_arguments(retry_policy), **kwargs)
        self.retry_policy = retry_policy

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Set the arguments that all mapped tasks share."""
        return keep_default_policy(super().partial(**kwargs), cls, kwargs)


def _cause(error: BaseException) -> str:
    if isinstance(error, TrialFailedError | RunnerDiedError):
        return error.cause
    if isinstance(error, RayClusterError):
        return UNREACHABLE
    return Cause.STORAGE.value if isinstance(error, StorageError) else ""
