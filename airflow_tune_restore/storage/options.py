"""The options of a URL (`s3://bucket/path?endpoint_override=…&region=…`), as pyarrow takes them.

Names, meanings and decoding are those of `pyarrow.fs.FileSystem.from_uri`, 26. But an option that is
given twice or without a value is refused here, where pyarrow ignores it. `a=b&` has one option.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_plus

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.location import Location


class Option(NamedTuple):
    """The regular expression that the decoded value of an option must match, and the same in words."""

    pattern: str
    words: str


BOOLEAN = Option("(?i:true|false|1|0)", "true or false")
SCHEME = Option("https?", "http or https")
ENDPOINT = Option(r"(https?://)?[^/@?#\s]+(/[^@?#\s]*)?", "host:port or http://host:port")
WORD = Option(r"[\w.:-]+", "a name")

_SECRETS = re.compile(r"(?i)key|secret|token|password|credential|client|tenant|sas|sig|auth$")
"""Parts of the names of options whose values are secrets or identities."""

_WRITTEN = re.compile(r"(?:[\w.~!$'()*+,;:@/?=-]|%[0-9A-Fa-f]{2})*", re.ASCII)
"""Characters that a URL may hold there (RFC 3986); pyarrow refuses or drops others."""


def read_options(location: Location, known: Mapping[str, Option]) -> dict[str, str]:
    """Decode the options of a URL. Messages never repeat a value: it may be a secret.

    Raises:
        InvalidInputError: If one is unknown, given twice, empty or invalid, or looks like a credential.
    """
    where = f"{location.scheme}://{location.authority}{location.path}"
    if "@" in location.options:
        raise InvalidInputError(
            f"The options of a {location.scheme}:// address hold an '@', as credentials do. Credentials "
            "come from the environment or from an Airflow connection. Write any other @ as %40."
        )
    found: dict[str, str] = {}
    for piece in filter(None, location.options.split("&")):
        name, value = (unquote_plus(part) for part in piece.partition("=")[::2])
        if name not in known:
            raise InvalidInputError(_unknown(name, where, known))
        if name in found:
            raise InvalidInputError(f"The option {name} of {where} is given twice. Give it once.")
        if not _WRITTEN.fullmatch(piece) or not re.fullmatch(known[name].pattern, value):
            raise InvalidInputError(
                f"The option {name} of {where} cannot have this value. Write {known[name].words}."
            )
        found[name] = value
    return found


def _unknown(name: str, where: str, known: Mapping[str, Option]) -> str:
    shown = name.encode("unicode_escape").decode()[:50]
    names = ", ".join(sorted(known))
    takes = f"known are {names}" if known else "none are known for such an address"
    if _SECRETS.search(name):
        return (
            f"The option {shown} of {where} is refused: credentials come from the environment or from an "
            f"Airflow connection, never from an address ({takes})."
        )
    return (
        f"The option {shown!r} of {where} is not known; {takes}. "
        "A name in an address cannot hold a ? that is followed by a =."
    )


def endpoint_url(options: Mapping[str, str]) -> str | None:
    """Return the endpoint as a URL; a scheme in it wins over `scheme`, as in pyarrow."""
    endpoint = options.get("endpoint_override")
    if endpoint is None or "://" in endpoint:
        return endpoint
    return f"{options.get('scheme', 'https')}://{endpoint}"
