"""Regular expressions on errors, in bounded time: the texts are those of storage.

`re` tries one way to match after another. So `(a+)+b` takes longer than the world lasts on forty times an
`a`, and nothing can stop it. Here `re` reads the pattern, and matches its single characters and anchors.
All ways to match are then followed at once, as the set of the positions that they have reached.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from re import _compiler, _parser  # type: ignore[attr-defined]
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError

MAX_PATTERN = 300
"""Characters of a pattern."""

_Step = Callable[[str, set[int]], set[int]]
"""Returns where a part of a pattern may end in a text, for each place where it may start."""

_SINGLE = {_parser.LITERAL, _parser.NOT_LITERAL, _parser.ANY, _parser.IN, _parser.AT}
_REPEATS = {_parser.MAX_REPEAT, _parser.MIN_REPEAT}


def search(pattern: str, text: str) -> bool:
    """Whether a pattern matches somewhere in a text, as with `re.search`; raises as `check`."""
    return bool(_compile(pattern)(text, set(range(len(text) + 1))))


def check(pattern: str) -> None:
    """Refuse what `search` cannot match.

    Raises:
        InvalidInputError: If it is not a regular expression of Python, is too long, or has look-around,
            back-references, possessive or atomic parts, or flags that are not at its start.
    """
    _compile(pattern)


@lru_cache(maxsize=64)
def _compile(pattern: str) -> _Step:
    if len(pattern) > MAX_PATTERN:
        raise _refused(pattern[:MAX_PATTERN], f"it has more than {MAX_PATTERN} characters")
    try:
        return _sequence(_parser.parse(pattern), pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refused(pattern, str(error)) from None


def _sequence(parts: Any, pattern: str) -> _Step:
    steps = [_step(part, parts.state, pattern) for part in parts]

    def run(text: str, places: set[int]) -> set[int]:
        for step in steps:
            places = step(text, places)
        return places

    return run


def _step(part: tuple[Any, Any], state: Any, pattern: str) -> _Step:
    kind, of = part
    if kind in _SINGLE:
        match = _compiler.compile(_parser.SubPattern(state, [part])).match
        return lambda text, places: {m.end() for at in places if (m := match(text, at))}
    if kind is _parser.BRANCH:
        ways = [_sequence(way, pattern) for way in of[1]]
        return lambda text, places: set().union(*(way(text, places) for way in ways))
    if kind is _parser.SUBPATTERN and not (of[1] or of[2]):
        return _sequence(of[3], pattern)
    if kind in _REPEATS:
        return _repeat(of[0], of[1], _sequence(of[2], pattern))
    raise _refused(
        pattern,
        "look-around, back-references, possessive and atomic parts, and flags of a part are not "
        "supported",
    )


def _repeat(least: int, most: int, step: _Step) -> _Step:
    def run(text: str, places: set[int]) -> set[int]:
        for _ in range(least):
            before, places = places, step(text, places)
            if places in (before, set()):
                break
        reached = new = places
        for _ in range(most - least):
            new = step(text, new) - reached
            if not new:
                break
            reached = reached | new
        return reached

    return run


def _refused(pattern: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"only: the pattern error={pattern!r} cannot be used: {why}.")
