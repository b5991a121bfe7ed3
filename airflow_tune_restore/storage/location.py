"""A path or URL, taken apart so that no character of it is lost.

`urlsplit` loses some: it ends a path at `?` and `#`, forgets those that nothing follows, and drops line
breaks. To every store we open they are characters of a key like any other.
"""

from typing import NamedTuple

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
        """Take a path or URL apart."""
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme:
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
