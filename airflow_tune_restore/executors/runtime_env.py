"""The `runtime_env` of jobs: of the section `[ray_executor]`, of a connection, and of a task."""

import json
from collections.abc import Mapping
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.ray.package import check_types
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.location import Location

LONGEST_VARIABLE = 128 * 1024 - 1
"""Bytes of NAME=value: Linux starts no process with a longer one (MAX_ARG_STRLEN).

Ray (2.60) tries it again and again for 15 minutes, and then gives no reason.
"""


def parse_runtime_env(where: str, value: Any) -> dict[str, Any]:
    """Return a runtime_env as JSON has it, without what is None.

    Raises:
        InvalidInputError: If a part has a wrong type or is a local path. Values of variables are not
            shown: they may be secrets.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidInputError(
            f'{where} is not a JSON object. Write it like {{"pip": ["pandas"]}}.'
        )
    given = {name: part for name, part in value.items() if part is not None}
    try:
        check_types(given)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from None
    for name in ("working_dir", "py_modules"):
        _check_addresses(f"{where}: {name}", given.get(name, ()))
    try:
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidInputError(
            f"{where} cannot be sent as JSON. Use only objects, lists, texts, numbers, true and false."
        ) from None
    parsed: dict[str, Any] = json.loads(text)
    for name, variable in parsed.get("env_vars", {}).items():
        if len(f"{name}={variable}".encode()) >= LONGEST_VARIABLE:
            raise InvalidInputError(
                f"{where}: the variable {printable(name, 80)} is too long. Linux starts no process with "
                f"one of {LONGEST_VARIABLE:,} bytes. Put its value into a file of the image, or of "
                "py_modules."
            )
    return parsed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put a runtime_env over another one: variable by variable, with its modules behind the others."""
    return {
        **base,
        **over,
        "env_vars": {**base.get("env_vars", {}), **over.get("env_vars", {})},
        "py_modules": [*base.get("py_modules", ()), *over.get("py_modules", ())],
    }


def _check_addresses(where: str, paths: Any) -> None:
    """Raise InvalidInputError for a path: of the scheduler's machine, nothing is sent."""
    for path in [paths] if not isinstance(paths, list | tuple) else paths:
        if not Location.parse(str(path)).scheme:
            raise InvalidInputError(
                f"{where} has the local path {printable(str(path))}, which the executor does not send to "
                "the cluster. Give the URI of a zip file, such as s3://bucket/code.zip, or put the code "
                "into the image of the cluster."
            )
