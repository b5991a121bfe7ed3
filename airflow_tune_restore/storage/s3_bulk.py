"""S3 for many requests, or large ones: they go through obstore.

obstore takes a fraction of s3fs's processor time per request (ADR 0007). Credentials, endpoint and region
come from the s3fs client. Requests go through s3fs where obstore would differ from it, and after every
error of obstore: `client_errors` explains the errors of s3fs. Each may be sent twice: a body that its own
sender has created counts as created (`FsspecStore.create`).
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.storage.base import PIECE_BYTES, Entry
from airflow_tune_restore.storage.fsspec_store import (
    Bucket,
    object_entry,
    prefix_entry,
    split_bucket,
)
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.storage.s3 import S3Store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_RETRIES = 2
"""s3fs comes next, and has retries of its own."""

_SMALL_SECONDS, _LARGE_SECONDS = 15, 900
"""How long a request may take: as with s3fs, on which the rules of leases count; and one for a body of up
to 512 MiB."""

_NO_KEY, _TAKEN = "<Code>NoSuchKey</Code>", "<Code>PreconditionFailed</Code>"
"""In answers of S3, which obstore repeats; a key in its URL has no such characters."""

_PAGE = 1000
"""Objects in one answer to a listing: the most that S3 gives."""

_ASK_AGAIN = timedelta(minutes=5)
"""How long obstore keeps credentials before it takes them from s3fs again."""


class BulkS3Store(S3Store):
    """S3 through obstore; stores made by `at` share its client."""

    def __init__(
        self,
        filesystem: "AbstractFileSystem",
        location: Location,
        bucket: Bucket | None = None,
        client: Any = None,
    ) -> None:
        super().__init__(filesystem, location, bucket)
        self._client = client or _client(filesystem, location.authority)

    def rooted_at(self, location: Location) -> Self:
        """Return the store of another place in the same bucket, with the same clients."""
        return type(self)(self._fs, location, self.bucket, self._client)

    def stream(self, key: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the object piece by piece, from one request."""
        from obstore.exceptions import BaseError

        path = self._path(key).partition("/")[2]
        try:
            answer = self._large_client().get(path)
        except (BaseError, OSError, ValueError):
            yield from super().stream(key, max_bytes=max_bytes)  # s3fs shows what is wrong
            return
        if answer.meta["size"] > max_bytes:
            raise self._too_large(key, max_bytes)
        try:
            for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)
        except (BaseError, OSError) as error:  # obstore has retried; its message is long
            raise StorageError(
                f"Cannot read {self._location.at(key)} to its end: the connection broke repeatedly, or "
                "the object was replaced meanwhile. Check the network, and whether its sweep still runs."
            ) from error

    def _children(self, prefix: str) -> Iterator[Entry]:
        from obstore.exceptions import BaseError

        _, below = split_bucket(prefix)
        try:
            found = self._client.list_with_delimiter(below)
        except (BaseError, OSError, ValueError):
            yield from super()._children(prefix)
            return
        for path in found["common_prefixes"]:
            yield prefix_entry(path, below)
        for item in found["objects"]:
            if item["path"].startswith(below):  # the directory's own marker has lost its slash
                yield _entry(item, below)

    def _descendants(self, prefix: str, after: str = "") -> Iterator[Entry]:
        from obstore.exceptions import BaseError

        _, below = split_bucket(prefix)
        try:
            for page in self._client.list(below, offset=after or None, chunk_size=_PAGE):
                for item in page:
                    if item["path"].startswith(below):
                        yield _entry(item, below)
                    after = item["path"]
        except (BaseError, OSError, ValueError):
            yield from super()._descendants(prefix, after)

    def _read(self, path: str, end: int | None) -> bytes:
        from obstore.exceptions import BaseError

        try:
            answer = self._client.get(path.partition("/")[2])
            if end is None or answer.meta["size"] < end:
                body: bytes = answer.bytes().to_bytes()
                return body
        except FileNotFoundError as error:  # obstore has no class of its own for it
            if _NO_KEY in str(error):  # else the bucket may be missing
                raise FileNotFoundError(path) from error
        except (BaseError, OSError, ValueError):
            pass  # s3fs shows what is wrong
        return super()._read(path, end)

    def _create(self, path: str, body: bytes) -> None:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            self._put_once(path, body, mode="create")
        except (AlreadyExistsError, FileExistsError) as error:
            if _TAKEN in str(error):  # else it may be a race that is not decided yet (409)
                raise FileExistsError(path) from error
            super()._create(path, body)
        except (BaseError, OSError, ValueError):
            super()._create(path, body)

    def _put(self, path: str, body: bytes) -> None:
        from obstore.exceptions import BaseError

        try:
            self._put_once(path, body, mode="overwrite")
        except (BaseError, OSError, ValueError):
            super()._put(path, body)

    def _put_once(self, path: str, body: bytes, *, mode: str) -> None:
        # s3fs would copy a large body
        client = self._large_client() if len(body) > PIECE_BYTES else self._client
        client.put(path.partition("/")[2], body, mode=mode, use_multipart=False)

    def _large_client(self) -> Any:
        """Return a client whose limit of time fits a large object: it is for all of its bytes."""
        if self.bucket.large_client is None:
            bucket = self._location.authority
            self.bucket.large_client = _client(self._fs, bucket, _LARGE_SECONDS)
        return self.bucket.large_client

    def _delete(self, path: str) -> None:
        from obstore.exceptions import BaseError

        try:
            self._client.delete(path.partition("/")[2])
        except (BaseError, OSError, ValueError, TypeError):  # of a key with an empty segment
            super()._delete(path)


def _entry(item: Any, below: str) -> Entry:
    etag = item["e_tag"] or ""
    return object_entry(item["path"], below, item["size"], item["last_modified"], etag)


def can_serve_in_bulk(filesystem: "AbstractFileSystem") -> bool:
    """Whether obstore is installed, and can do what this s3fs filesystem does."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        return False
    fs: Any = filesystem
    plain = not (fs.req_kw or fs.s3_additional_kwargs or fs.anon)
    plain = plain and fs.client_kwargs.get("verify") in (None, True)
    plain = plain and "defaults_mode" not in fs.config_kwargs
    return plain and not fs.s3.meta.config.proxies and not _has_own_certificates(fs)


def _has_own_certificates(fs: Any) -> bool:
    if fs.s3.meta.endpoint_url.startswith("http://"):
        return False
    session = getattr(fs.s3._endpoint, "http_session", None)  # noqa: SLF001  AWS_CA_BUNDLE ends there
    return getattr(session, "_verify", True) is not True


def _client(filesystem: Any, bucket: str, seconds: int = _SMALL_SECONDS) -> Any:
    """Return a client of obstore, with this limit of time for each request."""
    from fsspec.asyn import sync
    from obstore.store import S3Store as Client

    client = filesystem.s3  # made, and connected, by s3fs
    region = client.meta.region_name or "us-east-1"
    endpoint = client.meta.endpoint_url
    signer = client._request_signer  # noqa: SLF001  the only place with the credentials of s3fs

    def credentials() -> Any:
        frozen = sync(filesystem.loop, signer._credentials.get_frozen_credentials)  # noqa: SLF001
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _ASK_AGAIN,  # s3fs refreshes those of a role
        }

    return Client(
        bucket,
        endpoint=endpoint,
        region=region,
        virtual_hosted_style_request=False,
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": f"{seconds}s"},
        retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=20)},
        credential_provider=credentials,
    )
