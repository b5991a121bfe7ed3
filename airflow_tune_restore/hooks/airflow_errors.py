"""Our errors as Airflow's: what no retry can mend fails at once, and none brings a long traceback."""

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
    CommitUndoneError,  # somebody meant it
    InvalidInputError,  # the same arguments are refused again
    KeyNotFoundError,  # a plan that is gone does not come back
    LeaseLostError,  # a newer restore is at work
    RecordUnreadableError,  # nor what lies there in the place of a plan
    RunnerRefusedError,  # refused input is refused again; a fenced attempt has a successor
    StateChangedError,  # the plan no longer fits
    StateUnreadableError,  # what lies in storage does not mend itself
    UncommittableError,
)
"""All others (a store that does not answer, a lease held by another, a runner that died) may pass."""


@contextmanager
def as_airflow_errors() -> Iterator[None]:
    """Raise our errors as `AirflowFailException` if they are permanent, else as `AirflowException`."""
    try:
        yield
    except PERMANENT as error:
        raise AirflowFailException(printable(str(error), 4000)) from None
    except TuneRestoreError as error:
        raise AirflowException(printable(str(error), 4000)) from None


def package_error_behind(error: BaseException) -> BaseException:
    """Return our error behind one that `as_airflow_errors` raised; any other error as it is.

    `raise … from None` hides the context from logs; Python keeps it all the same.
    """
    behind = error.__context__
    return behind if isinstance(behind, TuneRestoreError) else error
