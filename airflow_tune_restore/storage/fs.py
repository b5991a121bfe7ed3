"""From a path or URL to the store it names.

Credentials come from the environment, or inside an already authenticated filesystem (an Airflow
connection); never from a URL. Nothing is listed from a cache.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.storage import foreign_errors, s3_bulk
from airflow_tune_restore.storage.azure import AzureStore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fsspec_store import FsspecStore
from airflow_tune_restore.storage.gcs import GcsStore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location, at_home
from airflow_tune_restore.storage.s3 import ArrowStore, S3Store, s3_over_arrow

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_STORES: dict[str, type[FsspecStore]] = {
    "s3": S3Store, "s3a": S3Store,
    "gs": GcsStore, "gcs": GcsStore,
    "abfs": AzureStore, "abfss": AzureStore, "az": AzureStore,
}  # fmt: skip
_EXTRAS: dict[type[FsspecStore], str] = {S3Store: "s3", GcsStore: "gcs", AzureStore: "azure"}


def open_store(
    uri: str, *, filesystem: "AbstractFileSystem | None" = None, in_bulk: bool = False
) -> ObjectStore:
    """Open the store rooted at a path or URL.

    Args:
        uri: A local path, or any URL fsspec knows, without credentials.
        filesystem: An authenticated fsspec filesystem to use instead of the environment.
        in_bulk: Many reads follow, or large ones: use the client that is best at those, if installed.

    Raises:
        InvalidInputError: If the URL cannot be used, or needs a package that is not installed.
        StorageError: If what the environment says cannot be used.
    """
    if not uri.strip():
        raise InvalidInputError("The experiment URL is empty.")
    location = Location.parse(uri)
    scheme = location.scheme
    if scheme in LOCAL_SCHEMES:
        path = at_home(location.place)
        return LocalStore(Path(os.path.abspath(path)))  # noqa: PTH100  resolve() would follow links
    root = location.place.strip("/")
    if "@" in root.partition("/")[0]:
        raise _refused_credentials(scheme)
    if not root and scheme != "memory":
        raise InvalidInputError(f"{uri} names no bucket; write {scheme}://bucket/path.")
    filesystem = filesystem or open_filesystem(scheme, root.partition("/")[0])
    if type(filesystem).__name__ == "ArrowFSWrapper":
        return ArrowStore(filesystem, scheme, root)
    store = _STORES.get(scheme, FsspecStore)
    if in_bulk and store is S3Store and s3_bulk.can_read_in_bulk(filesystem):
        store = s3_bulk.BulkS3Store
    return store(filesystem, scheme, root)


def open_filesystem(scheme: str, bucket: str) -> "AbstractFileSystem":
    """Open fsspec's filesystem for a scheme, with the environment's credentials and no listing cache.

    Raises:
        InvalidInputError: If nobody knows the scheme, or its package is not installed.
        StorageError: If what the environment says cannot be used.
    """
    import fsspec

    store = _STORES.get(scheme)
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        if store is S3Store and (over_arrow := s3_over_arrow(bucket)) is not None:
            return over_arrow
        hint = (
            f" Install it: pip install 'airflow-tune-restore[{_EXTRAS[store]}]'." if store else ""
        )
        raise InvalidInputError(
            f"{scheme}:// needs a package that is missing: {error}.{hint}"
        ) from error
    except ValueError as error:
        if store is AzureStore:
            raise InvalidInputError(
                f"{scheme}:// needs an account: set AZURE_STORAGE_CONNECTION_STRING, or "
                "AZURE_STORAGE_ACCOUNT_NAME with a key, a SAS token or a service principal."
            ) from error
        raise InvalidInputError(f"{scheme}:// cannot be opened: {error}.") from error
    except Exception as error:
        raise StorageError(f"Cannot open {scheme}://: {foreign_errors.explain(error)}") from error


def _refused_credentials(scheme: str) -> InvalidInputError:
    """Say what stands before an `@`, but not the thing itself: it may be a secret."""
    if _STORES.get(scheme) is AzureStore:
        return InvalidInputError(
            f"{scheme}://…@… names an account or an Airflow connection. Here write "
            f"{scheme}://container/path, and name the account in AZURE_STORAGE_ACCOUNT_NAME."
        )
    return InvalidInputError(
        f"{scheme}://…@… names a user or an Airflow connection, which only works inside Airflow. "
        "Here credentials come from the environment; give the URL without the part before '@'."
    )
