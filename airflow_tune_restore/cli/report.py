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
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises for a name that is too long
        raise InvalidInputError(
            f"{path} is a directory. Give a file, such as {path / 'report.html'}."
        )
    store = open_experiment(experiment)
    body = build_report(store, address=experiment, written_at=datetime.now(UTC)).encode()
    try:
        _write(path, body)
    except OSError as error:
        raise InvalidInputError(
            f"The report cannot be written to {path}: {error.strerror}. Give another file."
        ) from error
    return len(body)


def _write(path: Path, body: bytes) -> None:
    """Write a whole file or none. A link stays, and a pipe or a device is written to, not replaced."""
    if path.exists() and not path.is_file():
        path.write_bytes(body)
        return
    file = Path(os.path.realpath(path))  # Path.resolve raises for a link to itself
    part = file.with_name(f".report-{os.getpid()}")  # the name may be as long as a name can be
    try:
        part.write_bytes(body)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
