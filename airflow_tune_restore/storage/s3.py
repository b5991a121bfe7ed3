"""S3 through s3fs, and through pyarrow where s3fs is missing."""

import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.storage import client_errors
from airflow_tune_restore.storage.base import Entry
from airflow_tune_restore.storage.fsspec_store import (
    Bucket,
    FsspecStore,
    object_entry,
    prefix_entry,
    split_bucket,
)
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.storage.options import (
    BOOLEAN,
    ENDPOINT,
    SCHEME,
    WORD,
    Option,
    endpoint_url,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ONE_PUT_BYTES = 2 * 1024**3
"""Conditions hold only for single puts (multipart completions race), so puts are never split."""

CONFLICT_DELAYS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds to wait for the end of a race that AWS reports (409) before the next try."""


class S3Store(FsspecStore):
    """S3 through s3fs."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "region": WORD,
        "scheme": SCHEME,
        "endpoint_override": ENDPOINT,
        # without effect: buckets are neither made nor deleted, and a write is not opened without a body
        "allow_bucket_creation": BOOLEAN,
        "allow_bucket_deletion": BOOLEAN,
        "allow_delayed_open": BOOLEAN,
        "tls_ca_file_path": Option("/.+", "the absolute path of a file"),
        "tls_verify_certificates": Option(
            "(?i:true|1)",
            "true: pyarrow loses `false` on the way to Ray's workers (26). Name the authority that "
            "signed the certificate in tls_ca_file_path",
        ),
        "smart_defaults": Option(
            "legacy|standard|in-region|cross-region|mobile",
            "legacy, standard, in-region, cross-region or mobile; auto would send requests to AWS",
        ),
    }

    def __init__(
        self, filesystem: "AbstractFileSystem", location: Location, bucket: Bucket | None = None
    ) -> None:
        super().__init__(filesystem, location, bucket)
        if getattr(filesystem, "session", None) is not None and "set_session" not in vars(
            filesystem
        ):
            _keep_session(filesystem)

    @property
    def lists_trees(self) -> bool:
        """Return True."""
        return True

    @classmethod
    def client_arguments(
        cls, options: Mapping[str, str], given: "AbstractFileSystem | None"
    ) -> dict[str, Any]:
        """Return the options as arguments of s3fs.

        Raises:
            InvalidInputError: If the certificate file does not exist.
        """
        certificate = options.get("tls_ca_file_path")
        if certificate and not Path(certificate).is_file():
            raise InvalidInputError(
                f"The option tls_ca_file_path of an s3:// address names {certificate}, which is not a "
                "file on this machine. Each machine that opens the address needs it."
            )
        endpoint = endpoint_url(options)
        region = options.get("region")
        if endpoint and given is None:  # pyarrow reads this variable, and botocore does not
            region = region or os.environ.get("AWS_REGION")
        clients = {"region_name": region, "verify": certificate}
        config = {"defaults_mode": options.get("smart_defaults")}
        arguments = {
            "endpoint_url": endpoint,
            "use_ssl": False if options.get("scheme") == "http" else None,
            "client_kwargs": {name: value for name, value in clients.items() if value},
            "config_kwargs": {name: value for name, value in config.items() if value},
        }
        return {name: value for name, value in arguments.items() if value not in (None, {})}

    def _children(self, prefix: str) -> Iterator[Entry]:
        """List without s3fs, which also lists the parent if the prefix is empty."""
        _, below = split_bucket(prefix)
        for page in self._pages(Prefix=below, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield prefix_entry(item["Prefix"], below)
            yield from _objects(page, below)

    def _descendants(self, prefix: str, after: str = "") -> Iterator[Entry]:
        _, below = split_bucket(prefix)
        start = {"StartAfter": after} if after else {}
        for page in self._pages(Prefix=below, **start):
            yield from _objects(page, below)

    def _pages(self, **parameters: Any) -> Iterator[dict[str, Any]]:
        parameters |= self._fs.req_kw | {"Bucket": self._root.partition("/")[0]}
        while True:
            page = self._fs.call_s3("list_objects_v2", **parameters)
            yield page
            if not page.get("IsTruncated"):
                return
            parameters["ContinuationToken"] = page["NextContinuationToken"]

    def _create(self, path: str, body: bytes) -> None:
        for delay in CONFLICT_DELAYS:
            try:
                self._fs.pipe_file(path, body, mode="create", chunksize=ONE_PUT_BYTES)
            except OSError as error:
                if not client_errors.is_conflict(error):
                    raise
            else:
                return
            time.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311
        self._fs.pipe_file(path, body, mode="create", chunksize=ONE_PUT_BYTES)

    def _put(self, path: str, body: bytes) -> None:
        self._fs.pipe_file(path, body, chunksize=ONE_PUT_BYTES)

    def _server_date(self) -> str | None:
        # a listing below the prefix: HeadBucket is denied to accounts with rights on that prefix only
        page = next(self._pages(Prefix=split_bucket(self._root)[1], MaxKeys=1))
        stamp: str | None = page["ResponseMetadata"]["HTTPHeaders"].get("date")
        return stamp


def _objects(page: dict[str, Any], below: str) -> Iterator[Entry]:
    """Yield the objects of a page of a listing below the key prefix ``below``."""
    for item in page.get("Contents", ()):
        key, size, modified = item["Key"], item["Size"], item["LastModified"]
        yield object_entry(key, below, size, modified, item["ETag"])


def _keep_session(filesystem: Any) -> None:
    """Keep the session that a filesystem was given, as those of an Airflow connection are.

    s3fs 2026.2 to 2026.4 takes a client that has made no request yet for a closed one, and makes another
    session: without the credentials.
    """
    connect = filesystem.set_session

    async def set_session(refresh: bool = False, **options: Any) -> Any:  # noqa: FBT001, FBT002  s3fs's
        client = filesystem._s3  # noqa: SLF001
        http = getattr(getattr(client, "_endpoint", None), "http_session", None)
        if not refresh and getattr(http, "_sessions", None) == {}:  # no request yet
            return client
        return await connect(refresh=refresh, **options)

    filesystem.set_session = set_session


class ArrowStore(FsspecStore):
    """A store through pyarrow, which cannot create exclusively; that is enough for a runner."""

    def _read(self, path: str, end: int | None) -> bytes:
        with self._fs.open(path, "rb") as file:  # its cat_file seeks, but this stream cannot
            body: bytes = file.read() if end is None else file.read(end)
            return body

    def _create(self, path: str, body: bytes) -> None:  # noqa: ARG002
        raise StorageError(
            f"{self.uri} is open through pyarrow, which cannot create exclusively. "
            "Install s3fs: pip install 'airflow-tune-restore[s3]'."
        )


def s3_over_arrow(location: Location) -> "AbstractFileSystem | None":
    """Open S3 through pyarrow, because a Ray image may lack s3fs. None without pyarrow."""
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem
    except ImportError:
        return None
    try:
        # from_uri, as in Ray: the constructor ignores AWS_ENDPOINT_URL
        bucket = location._replace(scheme="s3", path="")
        return ArrowFSWrapper(FileSystem.from_uri(str(bucket))[0])
    except (OSError, ValueError) as error:  # it may request the bucket's region
        raise StorageError(f"Cannot open {location}: {client_errors.explain(error)}") from error
