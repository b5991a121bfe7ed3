"""Writes the report of an experiment to a file."""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow_tune_restore.cli.places import open_experiment
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.views.report import build_report


def write_report(experiment: str, path: Path) -> int:
    """Write the report of an experiment, and return how many bytes it has.

    A file that is there is replaced, and only by a whole one.

    Raises:
        InvalidInputError: If the file cannot be written; nothing was read then, if it is a directory.
    """
    if path.is_dir():
        raise InvalidInputError(
            f"{path} is a directory. Give a file, such as {path / 'report.html'}."
        )
    store = open_experiment(experiment)
    body = build_report(store, address=experiment, written_at=datetime.now(UTC)).encode()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(body)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidInputError(
            f"The report cannot be written to {path}: {error.strerror}. Give another file."
        ) from error
    return len(body)
