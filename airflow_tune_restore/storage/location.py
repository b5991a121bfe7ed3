"""A path or URL, taken apart so that no character of it is lost.

`urlsplit` loses some: it ends a path at `?` and `#`, drops either at the end of a text, and drops line
breaks. In a store they are ordinary characters of a key. Only a `?` that is followed by `name=` starts
the options of a URL, as in pyarrow. All code that splits or joins paths and URLs uses this module.
"""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from airflow_tune_restore.exceptions import InvalidInputError

LOCAL_SCHEMES = frozenset({"", "file", "local"})
"""Schemes of places on this machine; "" stands for a plain path."""

_OPTIONS = re.compile(r"\?(?=[^/?=]*=|(?:endpoint_override|region|scheme)(?:&|$))")
"""The start of options. Any other `?` is a character of its key (`why?`, `q?r`), as stores allow it. But
an endpoint without a value must not become the end of a key, which would then go to AWS."""


class Location(NamedTuple):
    """The parts of a path or URL.

    Args:
        scheme: In lower case; "" for a plain path.
        authority: The part before the first slash: a bucket, possibly after a user and an `@`.
        path: The rest as it was written: from that slash on, or the whole plain path.
        options: The part after the `?` of a URL, as it was written; "" for none. Paths have none.
    """

    scheme: str
    authority: str
    path: str
    options: str = ""

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Split a path or URL. A text that starts as a path is one, even if it contains `://`.

        A scheme has no slash in it (`/a://b`, `./a://b`), and does not start with a home (`~x://y`).
        """
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme or "/" in scheme or scheme.startswith("~"):
            return cls("", "", text)
        place, *options = _OPTIONS.split(rest, maxsplit=1)
        authority, slash, path = place.partition("/")
        return cls(scheme.lower(), authority, slash + path, "".join(options))

    @property
    def place(self) -> str:
        """The part after the scheme, as filesystems take it: bucket and key, or a path."""
        return self.authority + self.path

    @property
    def name(self) -> str:
        """The last part of the place: an experiment's name."""
        return self.place.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The place above, in the same store."""
        return self._replace(path=self.path.rstrip("/").rpartition("/")[0])

    def at(self, path: str) -> "Location":
        """Return the place at `path` below this one."""
        return self._replace(path=f"{self.path}/{path}".rstrip("/"))

    def __str__(self) -> str:
        """Return the path or URL again."""
        options = f"?{self.options}" if self.options else ""
        return f"{self.scheme}://{self.place}{options}" if self.scheme else self.path


def explain_percent(text: str) -> str:
    """Return a hint if a URL has `%20` or the like in it, which Ray decodes and stores do not; else "".

    pyarrow decodes the path of every URL (`FileSystem.from_uri`, 26).
    """
    location = Location.parse(text)
    decoded = location._replace(path=unquote(location.path))
    if not location.scheme or decoded == location:
        return ""
    return f" (a % is a character of its name here, but Ray decodes it; did you mean '{decoded}'?)"


def at_home(path: str) -> Path:
    """Return a plain path, with `~` and `~user` replaced by the home directory.

    Raises:
        InvalidInputError: If that user or home directory does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidInputError(
            f"{path}: this user does not exist, or has no home directory. For a directory whose name "
            f"starts with ~, write ./{path}."
        ) from error
