"""A path or URL, taken apart so that no character of it is lost.

`urlsplit` loses some: it ends a path at `?` and `#`, forgets those that nothing follows, and drops line
breaks. To every store we open they are characters of a key like any other. Only a `?` that `name=`
follows begins the options of a URL, as pyarrow takes them. Whatever has to tell a path from a URL, or to
take a name or a place below from one, asks here.
"""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from airflow_tune_restore.exceptions import InvalidInputError

LOCAL_SCHEMES = frozenset({"", "file", "local"})
"""What names a place on this machine; "" stands for a plain path."""

_OPTIONS = re.compile(r"\?(?=[^/?=]*=|(?:endpoint_override|region|scheme)(?:&|$))")
"""Where options begin. A `?` alone stays a character of its key (`why?`, `q?r`), as stores allow it; but
an endpoint whose value was forgotten must not become the end of a key that AWS is asked for."""


class Location(NamedTuple):
    """The parts of a path or URL.

    Args:
        scheme: In lower case; "" for a plain path.
        authority: What stands before the first slash: a bucket, perhaps after somebody and an `@`.
        path: All the rest as it was written: from that slash on, or the whole plain path.
        options: What follows the `?` of a URL, as it was written; "" for none. Paths have none.
    """

    scheme: str
    authority: str
    path: str
    options: str = ""

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Take a path or URL apart. What begins as a path is one, though `://` follows somewhere.

        No scheme has a slash in it (`/a://b`, `./a://b`), nor begins with somebody's home (`~x://y`).
        """
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme or "/" in scheme or scheme.startswith("~"):
            return cls("", "", text)
        place, *options = _OPTIONS.split(rest, maxsplit=1)
        authority, slash, path = place.partition("/")
        return cls(scheme.lower(), authority, slash + path, "".join(options))

    @property
    def place(self) -> str:
        """All that follows the scheme, as filesystems take it: bucket and key, or a path."""
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
    """Return why nothing may be at a URL with `%20` in it, which Ray decodes and stores do not.

    "" for any other. pyarrow decodes the path of every URL it is given (`FileSystem.from_uri`, 26).
    """
    location = Location.parse(text)
    decoded = location._replace(path=unquote(location.path))
    if not location.scheme or decoded == location:
        return ""
    return f" (a % is a character of its name here, and Ray decodes it: perhaps it is '{decoded}')"


def at_home(path: str) -> Path:
    """Return a plain path, `~` and `~somebody` replaced by the home directory.

    Raises:
        InvalidInputError: If that is nobody's.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidInputError(
            f"{path}: there is no such user, or no home directory. A directory whose name begins with ~ "
            f"is written ./{path}."
        ) from error
