"""A path or URL, taken apart so that no character of it is lost.

`urlsplit` loses some: it ends a path at `?` and `#`, forgets those that nothing follows, and drops line
breaks. To every store we open they are characters of a key like any other. Whatever has to tell a path
from a URL asks here.
"""

from pathlib import Path
from typing import NamedTuple

from airflow_tune_restore.exceptions import InvalidInputError

LOCAL_SCHEMES = frozenset({"", "file", "local"})
"""What names a place on this machine; "" stands for a plain path."""


class Location(NamedTuple):
    """The parts of a path or URL.

    Args:
        scheme: In lower case; "" for a plain path.
        authority: What stands before the first slash: a bucket, perhaps after somebody and an `@`.
        path: All the rest as it was written: from that slash on, or the whole plain path.
    """

    scheme: str
    authority: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Take a path or URL apart. What begins as a path is one, though `://` follows somewhere.

        No scheme has a slash in it (`/a://b`, `./a://b`), nor begins with somebody's home (`~x://y`).
        """
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme or "/" in scheme or scheme.startswith("~"):
            return cls("", "", text)
        authority, slash, path = rest.partition("/")
        return cls(scheme.lower(), authority, slash + path)

    @property
    def place(self) -> str:
        """All that follows the scheme, as filesystems take it: bucket and key, or a path."""
        return self.authority + self.path

    def __str__(self) -> str:
        """Return the path or URL again."""
        return f"{self.scheme}://{self.place}" if self.scheme else self.path


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
