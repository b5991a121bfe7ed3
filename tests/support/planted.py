"""Foreign text and numbers put into every place of a record, and whether any of it shows.

plant(document, path, PLANTS["text"])       the document with that one leaf replaced
leaves(document)                            the paths of all leaves, in lists and dicts, too
check_shown(text), check_sent(value)        nothing of it is escapes, controls, folds, or endless
"""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

from airflow_tune_restore.protocol.printable import is_printable

MARK = "\x1b[31m\x9b1m\r\n::group::forged\n:::endgroup::\u202e\u2028\x07"
LONG = MARK + "x" * 20_000
DIGITS = "@digits@"
"""Stands for a number of 5,000 digits, which this Python neither writes nor reads."""

PLANTS: dict[str, Any] = {
    "text": LONG, "digits": DIGITS, "number": 10**4000, "negative": -1, "infinite": math.inf,
    "list": [LONG, {LONG: LONG}], "dict": {LONG: [LONG], "a": {"b": 1}}, "null": None, "true": True,
}  # fmt: skip

MOST_OF_A_LINE = 4600
"""Of foreign text 4,000 characters are shown at most; our own words, and a URI, stand around it."""

MOST_SENT_BYTES = 64 * 1024
MOST_SENT_BYTES_OF_A_TRIAL = 48 * 1024


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each leaf, and of each list and dict."""
    if path:
        yield path
    items = document.items() if isinstance(document, dict) else ()
    items = enumerate(document) if isinstance(document, list) else items
    for key, value in items:
        yield from leaves(value, (*path, key))


def plant(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with one leaf replaced."""
    planted = copy.deepcopy(document)
    place = planted
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return planted


def encode(document: Any) -> bytes:
    return json.dumps(document).replace(json.dumps(DIGITS), "9" * 5000).encode()


def check_shown(text: str) -> None:
    """Check a log, an exception's text or what a command printed: line ends are ours, nothing else."""
    for line in text.split("\n"):
        assert is_printable(line), ascii(line[:300])
        assert len(line) <= MOST_OF_A_LINE, (len(line), line[:300])


def check_sent(value: Any, trials: int = 0) -> None:
    """Check an XCom, or what a trigger's event says."""
    for text in _texts(value):
        check_shown(text)
        assert "\n" not in text, ascii(text[:300])
    size = len(json.dumps(value, allow_nan=False))
    assert size <= MOST_SENT_BYTES + trials * MOST_SENT_BYTES_OF_A_TRIAL, size


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)
