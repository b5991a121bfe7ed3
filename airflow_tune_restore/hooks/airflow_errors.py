"""Turns errors of this package into Airflow's: permanent ones fail at once; tracebacks stay short."""

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_tune_restore.exceptions import (
    CommitUndoneError,
    InvalidInputError,
    KeyNotFoundError,
    LeaseLostError,
    RecordUnreadableError,
    RunnerRefusedError,
    StateChangedError,
    StateUnreadableError,
    TuneRestoreError,
    UncommittableError,
)
from airflow_tune_restore.protocol.printable import printable

PERMANENT = (
    CommitUndoneError,  # a user undid it on purpose
    InvalidInputError,  # the same arguments are refused again
    KeyNotFoundError,  # a deleted plan does not come back
    LeaseLostError,  # a newer restore has taken over
    RecordUnreadableError,  # a broken record does not repair itself
    RunnerRefusedError,  # refused input is refused again; a fenced attempt has a successor
    StateChangedError,  # the plan no longer fits the state
    StateUnreadableError,  # a broken state does not repair itself
    UncommittableError,
)
"""Errors that a retry cannot cure. Others may pass: a store out of reach, a lease that is held."""


@contextmanager
def as_airflow_errors() -> Iterator[None]:
    """Raise permanent errors as `AirflowFailException`, the package's others as `AirflowException`."""
    try:
        yield
    except PERMANENT as error:
        raise AirflowFailException(printable(str(error), 4000)) from None
    except TuneRestoreError as error:
        raise AirflowException(printable(str(error), 4000)) from None


def package_error_behind(error: BaseException) -> BaseException:
    """Return this package's error behind one of `as_airflow_errors`; any other error as it is.

    `raise … from None` hides the context in logs, but Python keeps it.
    """
    behind = error.__context__
    return behind if isinstance(behind, TuneRestoreError) else error
