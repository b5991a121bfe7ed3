"""Ray's view of the place a store is rooted at: what `Tuner.restore` is given."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_BY_PYARROW = frozenset({"s3", "gs", "gcs", "hdfs"})
"""Schemes pyarrow resolves from the environment. Ray then writes rows as it always does."""


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
        return None, uri
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    from airflow_tune_restore.storage.fs import open_filesystem

    return PyFileSystem(FSSpecHandler(open_filesystem(scheme, rest.partition("/")[0]))), rest
