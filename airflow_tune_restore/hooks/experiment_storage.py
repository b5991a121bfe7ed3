"""Opens the store of an address in Airflow (`s3://conn_id@bucket/path`), here and for runners."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from airflow.sdk import BaseHook

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.scan_filter import ScanFilter
from airflow_tune_restore.hooks.runner_environment import location_environment, runner_environment
from airflow_tune_restore.storage.fs import StoreClients, options_of
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location
from airflow_tune_restore.version_compat import (
    ASKING,
    AirflowException,
    AirflowNotFoundException,
)

RECONNECT_SECONDS = 300.0
"""How long triggers and the page keep a client before they read its connection again."""

_PROVIDERS = {
    "s3": "amazon", "s3a": "amazon",
    "gs": "google", "gcs": "google",
    "abfs": "microsoft-azure", "abfss": "microsoft-azure", "az": "microsoft-azure",
}  # fmt: skip
"""The Airflow provider that opens a scheme with a connection."""

_INSTALL = {
    "amazon": "'airflow-tune-restore[amazon]'",
    "google": "'airflow-tune-restore[gcs]' apache-airflow-providers-google",
    "microsoft-azure": "'airflow-tune-restore[azure]' apache-airflow-providers-microsoft-azure",
}
"""The arguments of `pip install` that bring it. Only `amazon` is an extra: the other two bring a hundred
packages, and hold back the versions of others."""

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from fsspec import AbstractFileSystem

    from airflow_tune_restore.experiments.evidence import DriverStatus
    from airflow_tune_restore.experiments.health import ExperimentReport
    from airflow_tune_restore.protocol.lease_objects import AskHolder
    from airflow_tune_restore.storage.base import ObjectStore


@dataclass(frozen=True, slots=True)
class Address:
    """The place of an experiment, or of a prefix with experiments.

    Args:
        uri: Its URI, without connection id, as recorded in plans.
        conn_id: Airflow connection to open it with; None for the credentials of the environment.
    """

    uri: str
    conn_id: str | None = None

    @classmethod
    def parse(cls, text: str, *, storage_conn_id: str | None = None) -> "Address":
        """Parse an address as `ObjectStoragePath` does, but keep every character of its path.

        Args:
            text: `s3://conn_id@bucket/path`, any URL without a connection id, or a local path. A URL
                may end in pyarrow's options (`?endpoint_override=…`).
            storage_conn_id: Connection to use instead of the one in the address.

        Raises:
            InvalidInputError: If it is empty or has several lines, contains a secret, names a connection
                for a local path, or has options that its store does not support.
        """
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError(f"An address must be a path or a URL as text, not {text!r}.")
        location = Location.parse(text)
        conn_id, _, host = location.authority.rpartition("@")
        if ":" in conn_id:
            # not shown: it is probably a secret
            raise InvalidInputError(
                f"A {location.scheme}:// address contains a user and a password before '@'. Put them "
                f"into an Airflow connection and write {location.scheme}://connection_id@{host}/…."
            )
        if "\n" in text or "\r" in text:
            # such a name may exist, but a line break at the end of a template is far more likely
            raise InvalidInputError(
                "An experiment address contains a line break. Write it in one line. Does its template "
                "end with a line break?"
            )
        location = location._replace(authority=host)
        options_of(location)  # before it is recorded or passed on: an option could hold a secret
        uri = str(location)
        chosen = storage_conn_id or conn_id or None
        if chosen and location.scheme in LOCAL_SCHEMES:
            raise InvalidInputError(
                f"{uri} is a local path. The connection {chosen!r} cannot be used with it."
            )
        return cls(uri, chosen)

    def at(self, uri: str) -> "Address":
        """Return the address of another URI behind the same connection."""
        return Address(uri, self.conn_id)

    def named_in(self, text: str) -> str:
        """Return a message with this address in the place of its URI, so that its commands reach it."""
        return text.replace(self.uri, str(self))

    def __str__(self) -> str:
        """Return the text form for XComs: with the connection id, never a secret."""
        if self.conn_id is None:
            return self.uri
        location = Location.parse(self.uri)
        return str(location._replace(authority=f"{self.conn_id}@{location.authority}"))


class ExperimentStorageHook(BaseHook):
    """Opens experiments on local disks and in object stores.

    Args:
        storage_conn_id: Airflow connection for every address. None: that of the address, else the
            credentials of the environment.
    """

    def __init__(self, storage_conn_id: str | None = None) -> None:
        super().__init__()
        self.storage_conn_id = storage_conn_id or None
        self._clients = StoreClients()
        self._reconnected = -math.inf

    def address(self, address: str | Address) -> Address:
        """Parse an address, with this hook's connection if it has one; return a parsed one as it is."""
        if isinstance(address, Address):
            return address
        return Address.parse(address, storage_conn_id=self.storage_conn_id)

    def open(self, address: str | Address) -> "ObjectStore":
        """Return the store rooted at an address.

        All places in one bucket, with one connection, share a client that lives as long as this hook. No
        listing or object is cached.

        Raises:
            InvalidInputError: If the address or its connection cannot be used.
            StorageError: If the connection cannot be read.
        """
        place = self.address(address)
        return self._clients.open(
            place.uri, account=place.conn_id, connect=lambda: _filesystem(place)
        )

    def reconnect(self) -> None:
        """Read connections again for all stores that are opened from now on: they may have changed.

        At most once in `RECONNECT_SECONDS`: each poll of a trigger may call this.
        """
        if time.monotonic() - self._reconnected > RECONNECT_SECONDS:
            self._reconnected = time.monotonic()
            self._clients.forget()

    def scan(
        self,
        prefix: str | Address,
        *,
        stale_after: timedelta,
        selection: ScanFilter | None = None,
        use_index: bool = True,
        ask_driver: "Callable[[str], DriverStatus] | None" = None,
        ask_holder: "AskHolder | None" = None,
    ) -> "list[ExperimentReport]":
        """Return a report on every experiment at or below a prefix; their URIs have no connection id."""
        return scan(
            self.open(prefix),
            stale_after=stale_after,
            selection=selection or ScanFilter(),
            use_index=use_index,
            ask_driver=ask_driver,
            ask_holder=ask_holder,
        )

    @contextmanager
    def runner_env(self, address: str | Address) -> Iterator[dict[str, str]]:
        """Yield the environment variables that a runner needs to open an address.

        Empty if the credentials of the environment are used. Values are masked in logs. A Google key is
        a file that exists until the block ends.

        Raises:
            InvalidInputError: If runners cannot use this type of connection.
        """
        conn_id = self.address(address).conn_id
        if conn_id is None:
            yield {}
            return
        with ExitStack() as stack:
            with ASKING:  # it masks secrets, and reads the connection again
                env = stack.enter_context(runner_environment(_connection(conn_id)))
            yield env

    def public_env(self, address: str | Address) -> dict[str, str]:
        """Return the variables that name the place of the store, for a runner elsewhere. No secrets.

        Raises:
            InvalidInputError: If runners cannot use this type of connection.
        """
        conn_id = self.address(address).conn_id
        with ASKING:
            return {} if conn_id is None else location_environment(_connection(conn_id))


_OF_TRIGGERS: "WeakValueDictionary[str, ExperimentStorageHook]" = WeakValueDictionary()


def share_hook() -> ExperimentStorageHook:
    """Return the hook that all triggers of a triggerer share, as long as one of them keeps it."""
    hook = _OF_TRIGGERS.get("")
    if hook is None:
        hook = _OF_TRIGGERS[""] = ExperimentStorageHook()
    return hook


def _connection(conn_id: str) -> "Connection":
    """Read a connection. With a missing one the AWS provider would use anonymous access."""
    try:
        with ASKING:
            return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise InvalidInputError(f"Airflow has no connection {conn_id!r}.") from error
    except AirflowException as error:
        text = f"Connection {conn_id!r} cannot be read: {type(error).__name__}."
        raise StorageError(text) from error


def _filesystem(place: Address) -> "AbstractFileSystem | None":
    """Return Airflow's filesystem of a connection; None for the credentials of the environment."""
    if place.conn_id is None:
        return None
    from airflow.sdk.io import get_fs

    _connection(place.conn_id)
    scheme = Location.parse(place.uri).scheme
    try:
        with ASKING:  # it reads the connection again
            filesystem = get_fs(scheme, place.conn_id)
    except (ImportError, ValueError) as error:
        provider = _PROVIDERS.get(scheme)
        why = f"{str(error).rstrip('.')}. Is the Airflow provider for it installed?"
        if provider is not None and not _is_installed(provider):
            why = (
                f"the package apache-airflow-providers-{provider} is not installed where this runs. "
                f"Install it on every part of Airflow: pip install {_INSTALL[provider]}."
            )
        raise InvalidInputError(
            f"Connection {place.conn_id!r} cannot open {scheme}://: {why}"
        ) from error
    except Exception as error:  # every provider has exceptions of its own
        raise StorageError(
            f"Connection {place.conn_id!r} cannot be used for {scheme}://: "
            f"{type(error).__name__}."  # its text may hold parts of the connection
        ) from error
    type(filesystem).clear_instance_cache()  # it would keep the client for ever
    return filesystem


def _is_installed(provider: str) -> bool:
    try:
        return find_spec(f"airflow.providers.{provider.replace('-', '.')}") is not None
    except ModuleNotFoundError:  # airflow.providers.microsoft
        return False
