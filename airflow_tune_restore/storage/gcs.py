"""Google Cloud Storage through gcsfs."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.base import Entry
from airflow_tune_restore.storage.fsspec_store import (
    FsspecStore,
    object_entry,
    prefix_entry,
    split_bucket,
)
from airflow_tune_restore.storage.options import ENDPOINT, SCHEME, WORD, Option, endpoint_url

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class GcsStore(FsspecStore):
    """Google Cloud Storage through gcsfs."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "scheme": SCHEME,
        "endpoint_override": ENDPOINT,
        "project_id": WORD,
        # gcsfs tries six times, and waits at most 36 s in all (gcsfs.retry.retry_request, 2026.10)
        "retry_limit_seconds": Option(
            r"(?:[4-9]\d|[1-9]\d{2,5})(?:\.\d+)?",
            "40 or more: gcsfs always tries for up to 36 s, and not longer",
        ),
    }

    @property
    def lists_trees(self) -> bool:
        """Return True."""
        return True

    @classmethod
    def client_arguments(
        cls,
        options: Mapping[str, str],
        given: "AbstractFileSystem | None",  # noqa: ARG003
    ) -> dict[str, Any]:
        """Return the options as arguments of gcsfs.

        Raises:
            InvalidInputError: If requests to Google itself would go without TLS.
        """
        endpoint = endpoint_url(options)
        if endpoint is None and options.get("scheme") == "http":
            raise InvalidInputError(
                "The option scheme=http of a gs:// address needs endpoint_override: requests to Google "
                "itself always use TLS. Remove the option."
            )
        arguments = {"endpoint_url": endpoint, "project": options.get("project_id")}
        return {name: value for name, value in arguments.items() if value}

    def _children(self, prefix: str) -> Iterator[Entry]:
        """List without gcsfs, which returns an empty listing if the bucket does not exist."""
        _, below = split_bucket(prefix)
        for _, page in self._pages(prefix=below, delimiter="/"):
            for name in page.get("prefixes", ()):
                yield prefix_entry(name, below)
            yield from _objects(page, below)

    def _descendants(self, prefix: str) -> Iterator[Entry]:
        _, below = split_bucket(prefix)
        for _, page in self._pages(prefix=below):
            yield from _objects(page, below)

    def _pages(self, **parameters: Any) -> Iterator[tuple[Mapping[str, str], dict[str, Any]]]:
        bucket = self._root.partition("/")[0]
        while True:
            headers, body = self._fs.call("GET", "b/{}/o", bucket, **parameters)
            page = json.loads(body)
            yield headers, page
            if not page.get("nextPageToken"):
                return
            parameters["pageToken"] = page["nextPageToken"]

    def _first_page(self) -> tuple[Mapping[str, str], dict[str, Any]]:
        return next(self._pages(prefix=split_bucket(self._root)[1], maxResults=1))

    def _server_date(self) -> str | None:
        return self._first_page()[0].get("Date")

    def _is_bucket_missing(self, verb: str, error: Exception) -> bool:
        """Distinguish a missing bucket from a missing object: gcsfs drops the text of the answer."""
        if not isinstance(error, FileNotFoundError):
            return False
        if verb not in ("read", "delete"):
            return True  # to list or write, only the bucket has to exist
        try:
            self._first_page()
        except FileNotFoundError:
            return True
        return False


def _objects(page: Mapping[str, Any], below: str) -> Iterator[Entry]:
    for item in page.get("items", ()):
        key, size, modified = item["name"], int(item["size"]), item["updated"]
        yield object_entry(key, below, size, modified, item["etag"])
