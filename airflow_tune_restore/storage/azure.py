"""Azure Blob Storage through adlfs."""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.base import Entry
from airflow_tune_restore.storage.fsspec_store import (
    FsspecStore,
    object_entry,
    prefix_entry,
    split_bucket,
)
from airflow_tune_restore.storage.options import BOOLEAN, Option

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


AUTHORITY = Option(
    r"\.?[\w-]+(\.[\w-]+)*(:\d+)?", ".suffix, which follows the account's name, or host:port"
)


class AzureStore(FsspecStore):
    """Azure Blob Storage through adlfs, which uses only the blob service, and only with TLS."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "enable_tls": Option("(?i:true|1)", "true: adlfs uses TLS only"),
        "blob_storage_authority": AUTHORITY,
        # for pyarrow's directories and writes, which this store does not use
        "dfs_storage_authority": AUTHORITY,
        "background_writes": BOOLEAN,
    }

    @property
    def lists_trees(self) -> bool:
        """Return True."""
        return True

    @classmethod
    def client_arguments(
        cls, options: Mapping[str, str], given: "AbstractFileSystem | None"
    ) -> dict[str, Any]:
        """Return the options as arguments of adlfs.

        Raises:
            InvalidInputError: If the account is unknown, or has an endpoint of its own.
        """
        authority = options.get("blob_storage_authority")
        if authority is None:
            return {}
        known: Any = given
        if known is None:
            connected = "AZURE_STORAGE_CONNECTION_STRING" in os.environ
            account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        else:
            connected, account = known.connection_string is not None, known.account_name
        if connected or not account:
            raise InvalidInputError(
                "The option blob_storage_authority of an abfs:// address needs the name of an account. "
                "Set AZURE_STORAGE_ACCOUNT_NAME with a key, a SAS token or a service principal, not a "
                "connection string, which has an endpoint of its own."
            )
        is_suffix = authority.startswith(".")  # as in pyarrow (AzureOptions, 26)
        return {"account_host": f"{account}{authority}" if is_suffix else f"{authority}/{account}"}

    def _children(self, prefix: str) -> Iterable[Entry]:
        """List without adlfs: the zero-byte marker of a directory hides its content from adlfs.

        (2026.8: `ls` requests the prefix without its slash, and takes the marker for the whole answer.)
        """
        found: Iterable[Entry] = self._wait_for(self._list, prefix)
        return found

    async def _list(self, prefix: str) -> list[Entry]:
        container, below = split_bucket(prefix)
        async with self._fs.service_client.get_container_client(container) as client:
            found = client.walk_blobs(name_starts_with=below, include=["metadata"], delimiter="/")
            return [_entry(item, below) async for item in found]

    def _descendants(self, prefix: str) -> Iterable[Entry]:
        token = None
        while True:
            entries, token = self._wait_for(self._list_page, prefix, token)
            yield from entries
            if not token:
                return

    async def _list_page(self, prefix: str, token: str | None) -> tuple[list[Entry], str | None]:
        """Return one answer of a listing of all blobs below a prefix, and the token of the next one."""
        container, below = split_bucket(prefix)
        async with self._fs.service_client.get_container_client(container) as client:
            found = client.list_blobs(name_starts_with=below, include=["metadata"])
            pages = found.by_page(continuation_token=token)
            async for page in pages:
                return [_entry(item, below) async for item in page], pages.continuation_token
        return [], None

    def _delete(self, path: str) -> None:
        self._wait_for(self._delete_blob, path)  # adlfs has no rm_file before 2026.2

    async def _delete_blob(self, path: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        container, _, name = path.partition("/")
        async with self._fs.service_client.get_container_client(container) as client:
            try:
                await client.delete_blob(name)
            except ResourceNotFoundError as error:
                raise FileNotFoundError(path) from error

    def _server_date(self) -> str | None:
        stamp: str | None = self._wait_for(self._date_of_listing)
        return stamp

    async def _date_of_listing(self) -> str | None:
        container, below = split_bucket(self._root)
        stamps: list[str | None] = []
        async with self._fs.service_client.get_container_client(container) as client:
            pages = client.list_blobs(
                name_starts_with=below,
                results_per_page=1,
                raw_response_hook=lambda it: stamps.append(it.http_response.headers.get("Date")),
            ).by_page()
            async for _page in pages:
                break
        return stamps[0] if stamps else None

    def _wait_for(self, coroutine_function: Any, *args: str | None) -> Any:
        """Run a coroutine in the thread of fsspec's event loop, where its clients live."""
        from fsspec.asyn import sync

        return sync(self._fs.loop, coroutine_function, *args)


def _entry(item: Any, below: str) -> Entry:
    metadata = {key.lower(): value for key, value in (item.get("metadata") or {}).items()}
    # a prefix, or a Gen2 directory
    if item.name.endswith("/") or metadata.get("hdi_isfolder") == "true":
        return prefix_entry(item.name, below)
    return object_entry(item.name, below, item.size, item.last_modified, item.etag)
