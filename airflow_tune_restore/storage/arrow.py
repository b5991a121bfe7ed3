"""Ray's view of the place a store is rooted at: what `Tuner.restore` is given."""

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_BY_PYARROW = frozenset({"s3", "gs", "gcs", "hdfs"})
"""Schemes pyarrow resolves from the environment. Ray then writes rows as it always does."""

_IN_URLS = "/!$&'()*+,;=:@"
"""What a URL's path may hold beside letters and digits; pyarrow refuses or decodes all else."""


def arrow_filesystem(uri: str) -> "tuple[FileSystem | None, str]":
    """Return `(storage_filesystem, path)` for `Tuner.restore(path, storage_filesystem=…)`.

    The filesystem is None where Ray resolves the URL by itself. Otherwise it wraps fsspec's, made from
    the environment alone: it is pickled into the experiment state, so it must carry no credential.

    Raises:
        InvalidInputError: If the scheme is unknown, or its package is not installed.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return None, rest if separator else uri
    # pyarrow 26 reaches an emulator (CLOUD_STORAGE_EMULATOR_ENDPOINT) as gs://anonymous@bucket only
    emulated = scheme in ("gs", "gcs") and "STORAGE_EMULATOR_HOST" in os.environ
    if scheme in _BY_PYARROW and not emulated:
        return _by_pyarrow(uri, scheme, rest)
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    from airflow_tune_restore.storage.fs import open_filesystem

    return PyFileSystem(FSSpecHandler(open_filesystem(scheme, rest.partition("/")[0]))), rest


def _by_pyarrow(uri: str, scheme: str, rest: str) -> "tuple[FileSystem | None, str]":
    """Leave a URL to Ray; one that is none by the letter (`my sweep`, `größe`) is taken apart for it."""
    if quote(rest, safe=_IN_URLS) == rest:
        return None, uri
    from pyarrow.fs import FileSystem

    # the same filesystem that Ray would make, from the environment alone
    return FileSystem.from_uri(f"{scheme}://{rest.partition('/')[0]}")[0], rest
