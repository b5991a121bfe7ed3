"""Path or URL -> store, or the arguments that `Tuner.restore` gets for it.

Credentials come from the environment or from an authenticated filesystem (an Airflow connection), never
from a URL. An endpoint or region in the options of a URL wins over both. Listings are never cached.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.storage import client_errors, s3_bulk
from airflow_tune_restore.storage.azure import AzureStore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fsspec_store import FsspecStore
from airflow_tune_restore.storage.gcs import GcsStore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location, at_home
from airflow_tune_restore.storage.options import read_options
from airflow_tune_restore.storage.s3 import ArrowStore, S3Store, s3_over_arrow

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow.fs import FileSystem

_STORES: dict[str, type[FsspecStore]] = {
    "s3": S3Store, "s3a": S3Store,
    "gs": GcsStore, "gcs": GcsStore,
    "abfs": AzureStore, "abfss": AzureStore, "az": AzureStore,
}  # fmt: skip
_EXTRAS: dict[type[FsspecStore], str] = {S3Store: "s3", GcsStore: "gcs", AzureStore: "azure"}

_PART_OF_FSSPEC = "fsspec.implementations."
_STORES_OF_FSSPEC = frozenset({"hdfs", "memory"})
"""Its other own implementations (ftp, http, zip and so on) cannot hold an experiment."""

_BY_PYARROW = frozenset({"s3", "gs", "gcs", "hdfs"})
"""Schemes pyarrow resolves from the environment. Ray then writes rows as it always does."""

_IN_URLS = "/!$&'()*+,;=:@"
"""Allowed in the path of a URL beside letters and digits; pyarrow refuses or decodes all else."""


class StoreClients:
    """Opens stores. Those of one bucket, with one connection, share a client for as long as this lives.

    A client of S3 takes 14 MiB and a quarter of a second of processor time. Threads may open at once.
    """

    def __init__(self) -> None:
        self._opened: dict[tuple[str | None, str, str, str], FsspecStore] = {}
        self._lock = threading.Lock()
        self._connecting: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)

    def open(
        self,
        uri: str,
        *,
        account: str | None = None,
        connect: "Callable[[], AbstractFileSystem | None]" = lambda: None,
    ) -> ObjectStore:
        """Return the store rooted at a path or URL, for many or large requests; raises as `open_store`.

        `connect` returns an authenticated filesystem in the place of the environment's. It is called for
        the first place that is opened in a bucket with this `account`.
        """
        location = _located(uri, has_account=account is not None)
        key = (account, location.scheme, location.authority, location.options)
        with self._lock:
            connecting = self._connecting[key]
        with connecting:  # a connection that hangs stops no other one
            if (opened := self._opened.get(key)) is not None:
                return opened.rooted_at(location)
            store = open_store(uri, filesystem=connect(), in_bulk=True)
            if isinstance(store, FsspecStore):
                self._opened[key] = store
            return store

    def forget(self) -> None:
        """Make new clients from now on: credentials may have changed. Opened stores keep theirs."""
        self._opened.clear()


def open_store(
    uri: str, *, filesystem: "AbstractFileSystem | None" = None, in_bulk: bool = False
) -> ObjectStore:
    """Open the store rooted at a path, or at a URL without credentials.

    An authenticated filesystem takes the place of the environment. If many requests follow, or large ones
    (`in_bulk`), the client that is best at those is used, if installed.

    Raises:
        InvalidInputError: If the URL cannot be used, or needs a package that is not installed.
        StorageError: If the settings of the environment cannot be used.
    """
    location = _located(uri, has_account=filesystem is not None)
    if location.scheme in LOCAL_SCHEMES:
        return LocalStore(Path(location.path))
    store = _STORES.get(location.scheme, FsspecStore)
    if filesystem is None:
        filesystem = open_filesystem(location)
    else:
        arguments = store.client_arguments(options_of(location), filesystem)
        filesystem = _reopened(filesystem, arguments)
    if type(filesystem).__name__ == "ArrowFSWrapper":
        return ArrowStore(filesystem, location)
    if in_bulk and store is S3Store and s3_bulk.can_serve_in_bulk(filesystem):
        store = s3_bulk.BulkS3Store
    return store(filesystem, location)


def _located(uri: str, *, has_account: bool) -> Location:
    """Return the place of a path or URL: a path becomes absolute, a URL names a bucket and no user.

    Raises:
        InvalidInputError: If it cannot be used.
    """
    if not uri.strip():
        raise InvalidInputError("The experiment URL is empty.")
    location = Location.parse(uri)
    scheme = location.scheme
    if not has_account:
        check_scheme(scheme)
    authority, slash, path = location.place.strip("/").partition("/")
    if "@" in authority and scheme not in LOCAL_SCHEMES:
        raise _refused_credentials(scheme)
    options_of(location)
    if scheme in LOCAL_SCHEMES:
        here = os.path.abspath(at_home(location.place))  # noqa: PTH100  resolve() would follow links
        return Location(scheme, "", here)
    if not authority and scheme != "memory":
        raise InvalidInputError(f"{uri} does not name a bucket; write {scheme}://bucket/path.")
    return location._replace(authority=authority, path=slash + path)


def options_of(location: Location) -> dict[str, str]:
    """Return the options of a URL, decoded.

    Raises:
        InvalidInputError: If its store does not accept them.
    """
    return read_options(location, _STORES.get(location.scheme, FsspecStore).OPTIONS)


def open_filesystem(location: Location) -> "AbstractFileSystem":
    """Open fsspec's filesystem for a URL, with the environment's credentials and no listing cache.

    Raises:
        InvalidInputError: If the scheme is unknown, its package is not installed, or its options cannot
            be used.
        StorageError: If the settings of the environment cannot be used.
    """
    import fsspec

    scheme, options = location.scheme, options_of(location)
    check_scheme(scheme)
    store = _STORES.get(scheme)
    arguments = store.client_arguments(options, None) if store else {}
    arguments |= {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        return fsspec.filesystem(scheme, **arguments)
    except ImportError as error:
        if store is S3Store and (over_arrow := s3_over_arrow(location)) is not None:
            return over_arrow
        extra = f"airflow-tune-restore[{_EXTRAS[store]}]" if store else ""
        hint = f" Install it: pip install '{extra}'." if extra else ""
        raise InvalidInputError(
            f"{scheme}:// needs a package that is missing: {str(error).rstrip('.')}.{hint}"
        ) from error
    except ValueError as error:
        text = f"{scheme}:// cannot be opened: {str(error).rstrip('.')}."
        if store is AzureStore:
            text = (
                f"{scheme}:// needs an account: set AZURE_STORAGE_CONNECTION_STRING, or "
                "AZURE_STORAGE_ACCOUNT_NAME with a key, a SAS token or a service principal."
            )
        raise InvalidInputError(text) from error
    except Exception as error:
        raise StorageError(f"Cannot open {scheme}://: {client_errors.explain(error)}") from error


def _reopened(
    filesystem: "AbstractFileSystem", arguments: Mapping[str, Any]
) -> "AbstractFileSystem":
    """Open a filesystem again, with its own credentials and other arguments beside them."""
    if not arguments:
        return filesystem
    given: Any = filesystem
    merged = dict(given.storage_options)
    for name, value in arguments.items():
        is_group = isinstance(value, dict)
        merged[name] = {**(merged.get(name) or {}), **value} if is_group else value
    return type(filesystem)(*given.storage_args, **merged, skip_instance_cache=True)


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that the environment alone cannot open as a store."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(scheme, {}).get("class", _PART_OF_FSSPEC)
    is_store = scheme in LOCAL_SCHEMES | _STORES_OF_FSSPEC or not known.startswith(_PART_OF_FSSPEC)
    if not is_store:
        raise InvalidInputError(
            f"{scheme}:// is not supported: give a path, or a URL that begins with s3://, gs://, "
            "abfs:// or hdfs://."
        )


def _refused_credentials(scheme: str) -> InvalidInputError:
    """Return the error for an address with `@`, without the part before it: it may be a secret."""
    if _STORES.get(scheme) is AzureStore:
        return InvalidInputError(
            f"{scheme}://…@… names an account or an Airflow connection. Here write "
            f"{scheme}://container/path, and name the account in AZURE_STORAGE_ACCOUNT_NAME."
        )
    return InvalidInputError(
        f"{scheme}://…@… names a user or an Airflow connection, which only works inside Airflow. "
        "Here credentials come from the environment; give the URL without the part before '@'."
    )


def arrow_filesystem(uri: str) -> "tuple[FileSystem | None, str]":
    """Return `(storage_filesystem, path)` for `Tuner.restore(path, storage_filesystem=…)`.

    The filesystem is None where Ray resolves the URL by itself, with its options. Otherwise it wraps that
    of fsspec, made from the environment and the options alone: it is pickled into the experiment state,
    so it must not carry credentials.

    Raises:
        InvalidInputError: If the scheme is unknown, its package is not installed, or its options cannot
            be used.
    """
    location = Location.parse(uri)
    scheme, options = location.scheme, options_of(location)
    if scheme in LOCAL_SCHEMES:
        return None, location.place
    # pyarrow 26 reaches an emulator (CLOUD_STORAGE_EMULATOR_ENDPOINT) as gs://anonymous@bucket only
    emulated = "STORAGE_EMULATOR_HOST" in os.environ or "endpoint_override" in options
    if scheme in _BY_PYARROW and not (emulated and scheme in ("gs", "gcs")):
        return _by_pyarrow(location)
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(open_filesystem(location))), location.place


def _by_pyarrow(location: Location) -> "tuple[FileSystem | None, str]":
    """Leave a valid URL to Ray; split one that is not strictly valid (`my sweep`, `größe`)."""
    if quote(location.place, safe=_IN_URLS) == location.place:
        return None, str(location)
    from pyarrow.fs import FileSystem

    # the same filesystem that Ray would make, from the environment and the options alone
    return FileSystem.from_uri(str(location._replace(path="")))[0], location.place
