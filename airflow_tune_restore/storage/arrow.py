"""The arguments that `Tuner.restore` gets for the root of a store."""

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_BY_PYARROW = frozenset({"s3", "gs", "gcs", "hdfs"})
"""Schemes pyarrow resolves from the environment. Ray then writes rows as it always does."""

_IN_URLS = "/!$&'()*+,;=:@"
"""Allowed in the path of a URL beside letters and digits; pyarrow refuses or decodes all else."""


def arrow_filesystem(uri: str) -> "tuple[FileSystem | None, str]":
    """Return `(storage_filesystem, path)` for `Tuner.restore(path, storage_filesystem=…)`.

    The filesystem is None where Ray resolves the URL by itself, with its options. Otherwise it wraps that
    of fsspec, made from the environment and the options alone: it is pickled into the experiment state,
    so it must not carry credentials.

    Raises:
        InvalidInputError: If the scheme is unknown, its package is not installed, or its options cannot
            be used.
    """
    from airflow_tune_restore.storage.fs import open_filesystem, options_of

    location = Location.parse(uri)
    scheme, options = location.scheme, options_of(location)
    if scheme in LOCAL_SCHEMES:
        return None, location.place
    # pyarrow 26 reaches an emulator (CLOUD_STORAGE_EMULATOR_ENDPOINT) as gs://anonymous@bucket only
    emulated = "STORAGE_EMULATOR_HOST" in os.environ or "endpoint_override" in options
    if scheme in _BY_PYARROW and not (emulated and scheme in ("gs", "gcs")):
        return _by_pyarrow(location)
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem = open_filesystem(location)
    return PyFileSystem(FSSpecHandler(filesystem)), location.place


def _by_pyarrow(location: Location) -> "tuple[FileSystem | None, str]":
    """Leave a valid URL to Ray; split one that is not strictly valid (`my sweep`, `größe`)."""
    if quote(location.place, safe=_IN_URLS) == location.place:
        return None, str(location)
    from pyarrow.fs import FileSystem

    # the same filesystem that Ray would make, from the environment and the options alone
    return FileSystem.from_uri(str(location._replace(path="")))[0], location.place
