"""Opens the experiment or prefix that a command is given, with an Airflow connection if it names one."""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.examine import is_experiment
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.fsspec_store import FsspecStore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location

if TYPE_CHECKING:
    from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook

_LISTED = 30
"""Directories that are listed to find an experiment below a directory that is not one."""

_LEVELS_ABOVE = 3
"""A file of a checkpoint lies that deep in its experiment."""


def open_place(address: str) -> ObjectStore:
    """Open the store of an address, as `ExperimentStorageHook.open` does inside Airflow.

    Raises:
        InvalidInputError: If the address cannot be used, or names a connection that cannot be used.
        StorageError: If the settings of the environment or the connection cannot be used.
    """
    if not _names_connection(address):
        return open_store(address, in_bulk=True)
    return _airflow_storage(address).open(address)


def open_experiment(address: str) -> ObjectStore:
    """Open an experiment. One level too high or too low in the tree is refused with the way to go on.

    Raises:
        InvalidInputError: As `open_place`; or if the address is a path that does not exist, or if
            experiments lie below it, or around it.
    """
    store = open_place(address)
    if isinstance(store, LocalStore):
        _check_exists(store.uri)
    entries = store.list_dir()
    if is_experiment(entries):
        return store
    if (around := experiment_around(address, store)) is not None:
        raise InvalidInputError(
            f"{store.uri} lies inside the experiment {around}. Give {quote(around)} in its place."
        )
    if (below := _experiment_below(store, entries)) is not None:
        raise InvalidInputError(
            f"{store.uri} is not an experiment, but experiments lie below it, such as {below}. "
            f"`tune-restore scan {quote(address)}` lists them."
        )
    return store


def _check_exists(path: str) -> None:
    """Refuse a path that does not exist; the listing reports every other error."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist.") from None
    except OSError:
        return


def experiment_around(address: str, store: ObjectStore) -> str | None:
    """Return the experiment that an opened place lies inside of; None if there is none."""
    location = Location.parse(address)
    if location.scheme in LOCAL_SCHEMES:
        location = Location.parse(store.uri)
    for _ in range(_LEVELS_ABOVE):
        location = location.parent
        if not location.path.strip("/"):
            return None
        try:
            if is_experiment(_in_same_bucket(store, location).list_dir()):
                return str(location)
        except TuneRestoreError:
            return None  # this process need not have the right to list what lies above
    return None


def _in_same_bucket(store: ObjectStore, location: Location) -> ObjectStore:
    """Return the store of a place above another one, with its client."""
    if not isinstance(store, FsspecStore):
        return open_store(str(location))
    bucket = location.authority.rpartition("@")[2]
    return store.rooted_at(location._replace(authority=bucket))


@contextlib.contextmanager
def runner_credentials(address: str) -> Iterator[dict[str, str]]:
    """Put the credentials of the address's connection into the environment of this process.

    Launchers open the experiment with them, and local runners inherit them, as a worker's runners do.
    Yields the variables that name the place of the store and hold no secret, for runners elsewhere.

    Raises:
        InvalidInputError: If runners cannot use this type of connection.
    """
    if not _names_connection(address):
        yield {}
        return
    storage = _airflow_storage(address)
    with storage.runner_env(address) as env:
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            yield storage.public_env(address)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _names_connection(address: str) -> bool:
    location = Location.parse(address)
    return "@" in location.authority and location.scheme not in LOCAL_SCHEMES


def _airflow_storage(address: str) -> "ExperimentStorageHook":
    """Return Airflow's way to open a store; this is the only place where the shell imports Airflow."""
    # as the processes of Airflow's server: connections of its database can be read, too
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Airflow's loggers keep the stream of now
            from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
    except ModuleNotFoundError as error:
        scheme = Location.parse(address).scheme
        # the part before the @ is not shown: it may be a secret
        raise InvalidInputError(
            f"{scheme}://…@… names an Airflow connection, and Airflow cannot be imported here "
            f"({error}). Run the command where Airflow is installed, or leave out the part before '@': "
            "then the credentials of the environment are used."
        ) from error
    return ExperimentStorageHook()


def _experiment_below(store: ObjectStore, entries: list[Entry]) -> str | None:
    """Return an experiment below a directory, if one is found near its top."""
    waiting = deque(_visible_directories("", entries))
    for _ in range(_LISTED):
        if not waiting:
            return None
        path = waiting.popleft()
        try:
            listed = store.list_dir(path)
        except TuneRestoreError:
            continue
        if is_experiment(listed):
            return path
        waiting.extend(_visible_directories(f"{path}/", listed))
    return None


def _visible_directories(parent: str, entries: list[Entry]) -> list[str]:
    return [
        f"{parent}{entry.name}"
        for entry in entries
        if entry.is_dir and not entry.name.startswith(".") and is_safe_name(entry.name)
    ]
