"""Reads the same few fields of many pickles that differ only in their values.

`pickle_reader` reads the first ones. The layout of one is kept: a regular expression in which opcodes,
keys and names are fixed, and only numbers and short texts are not. If it matches another pickle from end
to end, with each text as long as its opcode says, that one consists of the same opcodes. `pickle_reader`
would take the same way through it, and find each field at the same opcode. Any other pickle goes to
`pickle_reader`, too. Standard library only.
"""

import pickletools
import re
from itertools import islice, pairwise
from typing import Any

from airflow_tune_restore.protocol.pickle_reader import Marked, attribute, read_marked, read_pickle

_LEARN_EVERY = 64
"""Pickles of unknown layouts per layout that is learned, which takes as long as thirty of them."""

_MOST_LAYOUTS, _MOST_BYTES, _MOST_OPCODES, _MOST_VALUES = 16, 8 * 1024, 1_000, 300
"""Limits of what is learned: about eight checkpoints of a trial. Hostile ones take a second in all."""

_TAIL = 7
"""Bytes at the end by which layouts are kept. In Ray's records they tell which object is the latest."""

_FRAME = rb"\x95.{8}"
_TEXT = rb"\x8c.[\x00-\x7f]*+"
_NUMBER = rb"(?:K.|M..|J.{4}|G.{8}|[\x88\x89]|\x8a(?:\x11.{17}|\x10.{16}|\x0f.{15}))"
"""With integers as long as those of UUIDs."""

_NUMBERS = frozenset("BININT BININT1 BININT2 BINFLOAT LONG1 NEWTRUE NEWFALSE".split())

_Paths = tuple[tuple[str, ...], ...]


class PickleFields:
    """Reads the same fields of many pickles.

    Args:
        paths: For each field, the attributes and keys that lead to it; none of them is a number.
    """

    def __init__(self, *paths: tuple[str, ...]) -> None:
        self._paths = paths
        self._layouts: dict[bytes, _Layout] = {}
        self._unknown = 0

    def read(self, body: bytes) -> list[Any]:
        """Return the value of each field; None if it is missing (SymbolicError as `read_pickle`)."""
        layout = self._layouts.get(body[-_TAIL:])
        if layout is not None and (found := layout.read(body)) is not None:
            return found
        whole = read_pickle(body)
        self._unknown += 1
        number, left = divmod(self._unknown, _LEARN_EVERY)
        if not left and number <= _MOST_LAYOUTS and (learned := _learn(body, self._paths)):
            self._layouts[body[-_TAIL:]] = learned
        return [attribute(whole, *path) for path in self._paths]


class _Layout:
    """What pickles have in common: a pattern, and which of its groups are texts and fields.

    The group of a field is None if the field is missing in all of them.
    """

    def __init__(self, pattern: bytes, texts: list[int], fields: list[int | None]) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)
        self._texts, self._fields = texts, fields

    def read(self, body: bytes) -> list[Any] | None:
        """Return the fields of a pickle; None if it does not have this layout."""
        match = self._pattern.fullmatch(body)
        if match is None:
            return None
        groups = match.groups()
        if any(groups[number][1] != len(groups[number]) - 2 for number in self._texts):
            return None
        found: list[Any] = []
        for number in self._fields:
            value = None if number is None else _value(groups[number])
            if value is None and number is not None:
                return None
            found.append(value)
        return found


def _value(opcode: bytes) -> str | int | None:
    """Return the text or whole number that an opcode pushes; None for any other value."""
    match opcode[:1]:
        case b"\x8c":
            return opcode[2:].decode("ascii")
        case b"K" | b"M":
            return int.from_bytes(opcode[1:], "little")
        case b"J":
            return int.from_bytes(opcode[1:], "little", signed=True)
        case _:
            return None


def _learn(body: bytes, paths: _Paths) -> _Layout | None:
    """Return the layout of a pickle that can be read; None if it is large or a field is not a value."""
    opcodes = list(islice(pickletools.genops(body), _MOST_OPCODES + 1))
    if len(opcodes) > _MOST_OPCODES or len(body) > _MOST_BYTES:
        return None
    values: dict[int, bytes] = {}
    marked: list[tuple[str, Any]] = []
    for number, ((opcode, argument, _), (after, _, _)) in enumerate(pairwise(opcodes)):
        # a text is ASCII: it ends where an opcode follows that is not
        is_text = opcode.name == "SHORT_BINUNICODE" and after.name == "MEMOIZE"
        if is_text or opcode.name in _NUMBERS:
            values[number] = _TEXT if is_text else _NUMBER
            argument = Marked(argument)
            argument.opcode = number
        marked.append((opcode.name, argument))
    if len(values) > _MOST_VALUES:
        return None
    whole, naming = read_marked(marked)
    fields = [attribute(whole, *path) for path in paths]
    if not all(field is None or isinstance(field, Marked) for field in fields):
        return None
    in_fields = {field.opcode for field in fields if field is not None}
    if in_fields & naming:
        return None
    pattern, groups = b"", dict[int, int]()
    ends = [start for _, _, start in opcodes[1:]] + [len(body)]
    for number, ((opcode, _, start), end) in enumerate(zip(opcodes, ends, strict=True)):
        piece = _FRAME if opcode.name == "FRAME" else re.escape(body[start:end])
        if number in values and number not in naming:
            piece = values[number]
            if piece is _TEXT or number in in_fields:
                piece = b"(" + piece + b")"
                groups[number] = len(groups)
        pattern += piece
    return _Layout(
        pattern,
        [group for number, group in groups.items() if values[number] is _TEXT],
        [None if field is None else groups[field.opcode] for field in fields],
    )
