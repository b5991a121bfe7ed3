"""How a route answers: strict JSON, in time, and errors as one sentence with the status that fits."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    StorageError,
    TuneRestoreError,
    UnknownTrialError,
)
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.plugin.places import NOT_FOUND, Place, Places
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable

logger = logging.getLogger(__name__)

READ_SECONDS = 45.0
"""A browser waits this long for what is read. Proxies give up after a minute."""

ACT_SECONDS = 180.0
"""A browser waits this long for a release or an undo: they may watch a lease, and commit what is left."""

_BAD, _CONFLICT, _UNEXPECTED, _STORE = 400, 409, 500, 502
_STATUSES: tuple[tuple[type[TuneRestoreError], int], ...] = (
    (UnknownTrialError, NOT_FOUND),
    (InvalidInputError, _BAD),
    (KeyNotFoundError, NOT_FOUND),
    (StorageError, _STORE),
    (TuneRestoreError, _CONFLICT),
)
"""The first class that fits decides."""


def as_json(value: Any, status: int = 200) -> Response:
    """Return a value as strict JSON: NaN and infinities become null."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def answer(
    places: Places,
    prefix: str,
    function: Callable[[], Any],
    *,
    address: Address,
    seconds: float = READ_SECONDS,
) -> Response:
    """Call a function that reads a store, in a thread of its prefix, and return what it returns as JSON.

    Without an answer in time, the thread goes on, and its result is dropped.
    """
    running = asyncio.get_running_loop().run_in_executor(
        places.pool(prefix), _answered, function, address
    )
    try:
        return await asyncio.wait_for(running, seconds)
    except TimeoutError:
        logger.warning("%s: no answer within %s s", address, seconds)
        return _failed(
            _STORE,
            f"{address} could not be read within {seconds:.0f} s. Its store or the api-server is busy: "
            "try again. If that does not help, check that the api-server can reach the store.",
        )


async def answer_experiment(
    places: Places,
    place: Place,
    function: Callable[[Any], Any],
    *,
    seconds: float = READ_SECONDS,
) -> Response:
    """Open an experiment, call a function with its store, and return what it returns as JSON."""
    return await answer(
        places,
        place.prefix,
        lambda: function(places.open_experiment(place)),
        address=place.address,
        seconds=seconds,
    )


def _answered(function: Callable[[], Any], address: Address) -> Response:
    try:
        return as_json(function())
    except HTTPException as error:
        return _failed(error.status_code, error.detail)
    except TuneRestoreError as error:
        status = next(status for kind, status in _STATUSES if isinstance(error, kind))
        logger.info("%s: answered %s: %s", address, status, error)
        return _failed(status, address.named_in(str(error)))
    except Exception as error:  # every library has errors of its own, and the page must go on
        logger.exception("%s: unexpected error of the page", address)
        return _failed(
            _UNEXPECTED,
            f"Unexpected error: {type(error).__name__}. The log of the api-server has the traceback; "
            "please report it.",
        )


def _failed(status: int, text: str) -> Response:
    return as_json({"detail": printable(text, NOTE_LENGTH)}, status)


async def refuse_input(_request: Request, error: Exception) -> Response:
    """Answer a request with parameters or a body that are not valid: one sentence, without its values."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for it
    first = error.errors()[0]
    where = ".".join(str(part) for part in first.get("loc", ())[1:])
    return _failed(_BAD, f"{where or 'The request'}: {first.get('msg', 'not valid')}.")


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer a request that a route refused."""
    assert isinstance(error, HTTPException)  # noqa: S101  registered for it
    return _failed(error.status_code, str(error.detail))
