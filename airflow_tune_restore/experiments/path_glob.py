"""Globs on paths: of directories below a prefix, and of whole experiments.

A pattern is compared name by name: `*`, `?` and `[…]` stay within one name, and `**` stands for any
number of directories. Upper and lower case differ.
"""

import os
from fnmatch import fnmatchcase

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location, at_home


def matches(uri: str, pattern: str, prefix: str | None = None) -> bool:
    """Whether an experiment matches a pattern. A glob decides whose code an experiment runs with.

    * Without a slash (`lr-*`), the pattern is compared with the experiment's own directory name.
    * With a scheme (`s3://bucket/sweeps/team_a/**`) or a slash at its start (`/data/team_a/**`), with the
      whole URI or local path.
    * Any other (`team_a/**`) with the path from the prefix, which it matches from its first name to its
      last. So `team_a/**` does not match `team_b/team_a/x`, and nothing outside the prefix.

    Args:
        uri: The experiment, without a connection id.
        pattern: The glob.
        prefix: URI of the prefix that was searched, without a connection id. None: the bucket, or the
            root of the file system.

    Raises:
        InvalidInputError: If a local path starts with the home of a user that does not exist.
    """
    scheme, names = _names(uri)
    if "." in names or ".." in names:  # a client may take it for another directory
        return False
    if pattern.startswith("/"):
        return scheme == "" and match_names(names, _split(pattern))
    wanted, separator, rest = pattern.partition("://")
    if separator and "/" not in wanted:
        return _one_scheme(wanted) == scheme and match_names(names, _split(rest))
    if _is_name(pattern):
        return bool(names) and fnmatchcase(names[-1], pattern.strip("/"))
    if prefix is None:
        above = names[: 1 if scheme else 0]
    else:
        place, above = _names(prefix)
        options = {Location.parse(each).options for each in (uri, prefix)}
        if place != scheme or len(options) > 1:
            return False
    return names[: len(above)] == above and match_names(names[len(above) :], _split(pattern))


def is_glob(text: str) -> bool:
    """Whether a text is a glob on paths, and not a name."""
    return not set(text).isdisjoint("/*?[")


def check_pattern(name: str, pattern: str) -> None:
    """Refuse a pattern of an experiment that can match none.

    Raises:
        InvalidInputError: If it is empty, or names a connection. `name` is the argument it was given in.
    """
    if pattern.startswith(("./", "../")) or (pattern.endswith("/") and pattern.strip("/ ")):
        raise InvalidInputError(
            f"{name}={pattern!r} matches no path. Begin it with a name or a glob, such as 'team_a/**', "
            "and end it without a slash."
        )
    if not pattern.strip("/ "):
        raise InvalidInputError(f"{name}={pattern!r} holds no pattern.")
    if "@" in Location.parse(pattern).authority:
        scheme, _, rest = pattern.partition("://")
        raise InvalidInputError(
            f"{name}={pattern!r}: patterns are compared with URIs without a connection. Write "
            f"{scheme}://{rest.partition('@')[2]}."
        )


def matches_path(path: str, pattern: str) -> bool:
    """Whether a path below a prefix matches; a pattern without a slash is compared with its last name."""
    if _is_name(pattern):
        return fnmatchcase(path.rpartition("/")[2], pattern.strip("/"))
    return match_names(path.split("/"), _split(pattern))


def match_names(names: list[str], patterns: list[str]) -> bool:
    """Match name by name, with a table: a pattern of many `**` must not take exponential time."""
    reached = {0}
    for name in [*names, None]:
        for at in sorted(reached):  # `**` may also stand for nothing
            while at < len(patterns) and patterns[at] == "**":
                at += 1
                reached.add(at)
        if name is None:
            break
        reached = {
            at if patterns[at] == "**" else at + 1
            for at in reached
            if at < len(patterns) and (patterns[at] == "**" or fnmatchcase(name, patterns[at]))
        }
    return len(patterns) in reached


def _is_name(pattern: str) -> bool:
    pattern = pattern.strip("/")
    return "/" not in pattern and pattern != "**"


def _split(pattern: str) -> list[str]:
    return pattern.strip("/").split("/")


def _names(uri: str) -> tuple[str, list[str]]:
    """Return the scheme of a place, "" for all local ones, and its names: the bucket first."""
    location = Location.parse(uri)
    place, scheme = location.place, _one_scheme(location.scheme)
    if not scheme:
        place = os.path.abspath(at_home(place))  # noqa: PTH100  resolve() would follow links
    return scheme, place.strip("/").split("/") if place.strip("/") else []


def _one_scheme(scheme: str) -> str:
    scheme = scheme.lower()
    return "" if scheme in LOCAL_SCHEMES else scheme
