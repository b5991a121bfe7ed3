"""Unexpected errors of one experiment among many: reported, and kept from the others."""

import logging

from airflow_tune_restore.exceptions import UnexpectedError
from airflow_tune_restore.protocol.printable import printable

log = logging.getLogger(__name__)


def report_unexpected(experiment: str, error: Exception) -> UnexpectedError:
    """Log the traceback of an error (or a `MemoryError`), and return it as one of this package."""
    log.error("%s: unexpected error", printable(experiment), exc_info=error)
    return UnexpectedError(experiment, printable(f"{type(error).__name__}: {error}".rstrip(": ")))
