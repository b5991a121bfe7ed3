"""The configured prefixes, and the experiments below them. A browser names a label and a path only."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import HTTPException

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.experiments.examine import is_experiment
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.plugin.settings import Settings
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.location import Location

THREADS = 6
"""Requests of the page that read below one prefix at once. Airflow's own threads stay free."""

_REMEMBERED = 10_000
NOT_FOUND = 404


class Found(NamedTuple):
    """An address below a configured prefix."""

    prefix: str
    path: str


@dataclass(frozen=True, slots=True)
class Place:
    """An experiment that a browser names: a configured prefix, and a checked path below it."""

    prefix: str
    path: str
    address: Address

    @property
    def name(self) -> str:
        """Its directory's name, as it can be shown."""
        return printable(Location.parse(self.address.uri).name)


class Places:
    """Opens what lies below the configured prefixes.

    Args:
        settings: What is configured.
        hook: Opens stores; Airflow's connections by default.
        monotonic: A clock in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        hook: ExperimentStorageHook | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.monotonic = monotonic
        self._hook = hook or ExperimentStorageHook()
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()
        self._known: dict[Place, float] = {}

    def pool(self, prefix: str) -> ThreadPoolExecutor:
        """Return the threads of one prefix: a store that does not answer holds up no other one."""
        with self._lock:
            if prefix not in self._pools:
                self._pools[prefix] = ThreadPoolExecutor(THREADS, f"tune_restore {prefix}")
            return self._pools[prefix]

    def address(self, prefix: str) -> Address:
        """Return the address of a label (HTTPException 404 if there is none)."""
        address = self.settings.prefixes.get(prefix)
        if address is None:
            raise HTTPException(
                NOT_FOUND,
                f"No prefix named {printable(prefix, 80)!r} is configured. Reload the page.",
            )
        return address

    def place(self, prefix: str, path: str) -> Place:
        """Return the experiment at a path below a prefix, unread (HTTPException 404 for a wrong path)."""
        address = self.address(prefix)
        if not path:
            return Place(prefix, path, address)
        if not is_path(path):
            raise HTTPException(
                NOT_FOUND,
                f"{printable(path)!r} cannot be the path of an experiment. Reload the list.",
            )
        top = Location.parse(address.uri)
        top = top._replace(path=top.path.rstrip("/"))
        return Place(prefix, path, address.at(str(top.at(path))))

    def open_prefix(self, prefix: str) -> ObjectStore:
        """Open a configured prefix.

        Raises:
            StorageError: If its connection is missing or cannot be used.
        """
        return self._open(self.address(prefix))

    def open_experiment(self, place: Place) -> ObjectStore:
        """Open an experiment (HTTPException 404 if none lies there); raises as `open_prefix`."""
        store = self._open(place.address)
        now = self.monotonic()
        seen = self._known.get(place)
        if seen is not None and now - seen < self.settings.cache_seconds:
            return store
        if not is_experiment(store.list_dir()):
            self._known.pop(place, None)
            raise HTTPException(
                NOT_FOUND,
                f"{printable(str(place.address))} is not an experiment (any more). Go back.",
            )
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[place] = now
        return store

    def find(self, address: Address) -> Found | None:
        """Return the prefix and path of an address; None if it lies below no configured prefix.

        Of prefixes within each other, the longest is taken.
        """
        found: list[Found] = []
        for label, prefix in self.settings.prefixes.items():
            path = _path_below(prefix, address)
            if path is not None:
                found.append(Found(label, path))
        return min(found, key=lambda each: len(each.path), default=None)

    def _open(self, address: Address) -> ObjectStore:
        self._hook.reconnect()
        try:
            return self._hook.open(address)
        except InvalidInputError as error:  # not an input of the browser
            raise StorageError(str(error)) from error


def is_path(path: str) -> bool:
    """Whether a text is a path of visible names, which no store reads as anything else."""
    return all(is_safe_name(part) and not part.startswith(".") for part in path.split("/")) and (
        Location.parse(f"s3://bucket/{path}").path == f"/{path}"  # no options at its end
    )


def _path_below(prefix: Address, address: Address) -> str | None:
    top, place = Location.parse(prefix.uri), Location.parse(address.uri)
    if (prefix.conn_id, top.scheme, top.authority, top.options) != (
        address.conn_id,
        place.scheme,
        place.authority,
        place.options,
    ):
        return None
    root, path = top.path.rstrip("/"), place.path.rstrip("/")
    if path == root:
        return ""
    below = path.removeprefix(f"{root}/")
    return below if below != path and is_path(below) else None
