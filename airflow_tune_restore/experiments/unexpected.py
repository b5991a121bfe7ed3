"""An error that nobody foresaw, of one experiment among many: reported, and kept from the others."""

import logging

from airflow_tune_restore.exceptions import UnexpectedError
from airflow_tune_restore.protocol.printable import printable

log = logging.getLogger(__name__)


def report_unexpected(experiment: str, error: Exception) -> UnexpectedError:
    """Log the traceback, and return the error as one of ours.

    Args:
        experiment: Its address or URI.
        error: What was raised; `MemoryError` is one of them.
    """
    log.error("%s: something that nobody foresaw", printable(experiment), exc_info=error)
    return UnexpectedError(experiment, printable(f"{type(error).__name__}: {error}".rstrip(": ")))
