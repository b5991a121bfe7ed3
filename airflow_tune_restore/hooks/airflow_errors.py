"""Turns errors of this package into Airflow's: permanent ones fail at once; tracebacks stay short."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_tune_restore.exceptions import (
    CommitUndoneError,
    InvalidInputError,
    KeyNotFoundError,
    LeaseLostError,
    RecordUnreadableError,
    RestFailedError,
    RunnerRefusedError,
    StateChangedError,
    StateUnreadableError,
    TuneRestoreError,
    UncommittableError,
)
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.restore.paused import RestorePausedError
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)

logger = logging.getLogger(__name__)

PERMANENT = (
    CommitUndoneError,  # a user undid it on purpose
    InvalidInputError,  # the same arguments are refused again
    KeyNotFoundError,  # a deleted plan does not come back
    LeaseLostError,  # a newer restore has taken over
    RecordUnreadableError,  # a broken record does not repair itself
    RestFailedError,  # the run has ended these trials
    RunnerRefusedError,  # refused input is refused again; a fenced attempt has a successor
    StateChangedError,  # the plan no longer fits the state
    StateUnreadableError,  # a broken state does not repair itself
    UncommittableError,
)
"""Errors that a retry cannot cure. Others may pass: a store out of reach, a lease that is held."""


@contextmanager
def as_airflow_errors(
    describe_next: Callable[[TuneRestoreError], str] | None = None,
    is_final: Callable[[TuneRestoreError], bool] = lambda _error: False,
) -> Iterator[None]:
    """Raise permanent errors as `AirflowFailException`, the package's others as `AirflowException`.

    A trial that is paused has not failed: its task is skipped.
    The message is the last line of a task's log. With `describe_next`, it ends in what happens next.
    `is_final` picks errors that are permanent, beside those of `PERMANENT`.
    """
    try:
        yield
    except RestorePausedError as error:
        text = printable(str(error), NOTE_LENGTH)
        logger.info("%s", text)  # Airflow's own line does not have the reason of a skip
        raise AirflowSkipException(text) from None
    except TuneRestoreError as error:
        text = str(error)
        if describe_next is not None and (step := describe_next(error)):
            text = f"{text.rstrip('. ')}; {step}."
        is_permanent = isinstance(error, PERMANENT) or is_final(error)
        kind = AirflowFailException if is_permanent else AirflowException
        raise kind(printable(text, NOTE_LENGTH)) from None


def package_error_behind(error: BaseException) -> BaseException:
    """Return this package's error behind one of `as_airflow_errors`; any other error as it is.

    `raise … from None` hides the context in logs, but Python keeps it.
    """
    if isinstance(error, TuneRestoreError):
        return error
    behind = error.__context__
    return behind if isinstance(behind, TuneRestoreError) else error
