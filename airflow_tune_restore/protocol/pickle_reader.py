"""Reads a pickle without executing it.

A small stack machine over the opcodes of `pickletools`. It imports nothing, calls nothing, and hashes
nothing from the input: globals, calls and objects become plain records. A `pickle.Unpickler` whose
`find_class` returns stubs is not safe (extension codes, hash bombs, BUILD on a class); this is. Opcodes
that refer to something outside the pickle are refused. Size, length and memo are limited, so hostile
input ends in a `SymbolicError`, never in a hang. Errors do not quote the input. Standard library only.
"""

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

MAX_BYTES = 16 * 1024 * 1024
MAX_OPCODES = 200_000
MAX_MEMO = 100_000
MAX_INT_BYTES = 64
MAX_TEXT = 1024 * 1024


class SymbolicError(ValueError):
    """The bytes are not a pickle within the limits of this reader."""


class DamagedPickleError(SymbolicError):
    """The bytes are not a whole pickle: Ray cannot read them either."""


@dataclass(slots=True, eq=False)
class Global:
    """A name that the pickle would import."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Instance:
    """An object that the pickle would make: its maker, the arguments, and the state set afterwards."""

    maker: Any
    args: Any = None
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def class_name(self) -> str:
        """Return the name of its class, or "" if that is not a plain name."""
        return self.maker.name if isinstance(self.maker, Global) else ""


@dataclass(slots=True, eq=False)
class Mapping:
    """A dict, as pairs: keys are not hashed."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """Return the last value stored under a text key, or None."""
        matching = (v for name, v in reversed(self.pairs) if type(name) is str and name == key)
        return next(matching, None)


@dataclass(slots=True, eq=False)
class Unknown:
    """A value that is too long to be read."""


_MARK = object()
"""The MARK on the stack."""


def read_pickle(body: bytes) -> Any:
    """Read a pickle symbolically (SymbolicError if it is not one, exceeds the limits, or refers outside).

    Returns:
        Scalars, lists and tuples as themselves; dicts as `Mapping`, objects as `Instance`, imported
        names as `Global`.
    """
    return read_with_imports(body)[0]


def read_with_imports(body: bytes) -> tuple[Any, set[tuple[str, str]]]:
    """Read a pickle as `read_pickle` does; return also what it imports, as (module, name)."""
    if len(body) > MAX_BYTES:
        raise SymbolicError(f"pickle of {len(body)} bytes; the limit is {MAX_BYTES}")
    machine = _Machine()
    stream = BytesIO(body)
    code = b""
    try:
        for _ in range(MAX_OPCODES):
            code = stream.read(1)
            if code == b".":  # STOP
                return machine.pop(), machine.imports
            read_argument, operation = _BY_CODE[code]
            operation(machine, read_argument(stream) if read_argument is not None else None)
    except SymbolicError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        # raised by pickletools and an unbalanced stack for malformed input. Their texts quote the input,
        # which may be a link's target that its creator must not read: they are not passed on
        where = f"{_NAMES[code]}, before byte {stream.tell()}"
        raise DamagedPickleError(f"malformed pickle: {type(error).__name__} at {where}") from None
    raise SymbolicError(f"more than {MAX_OPCODES} opcodes")


class Marked(str):
    """Stands for the value that an opcode pushes, and tells its number."""

    opcode: int


def read_marked(opcodes: Iterable[tuple[str, Any]]) -> tuple[Any, set[int]]:
    """Run the opcodes (name, argument) of a pickle that can be read, without STOP; some push a `Marked`.

    Returns:
        What `read_pickle` returns, and the numbers of opcodes that push a key or part of a global's name.
        Those are in the result as texts.
    """
    machine = _Marker()
    for name, argument in opcodes:
        if isinstance(argument, Marked):
            machine.push(argument)
        else:
            _OPERATIONS[name](machine, argument)
    return machine.pop(), machine.naming


def attribute(value: Any, *path: str) -> Any:
    """Follow attribute or key names through `Instance` and `Mapping`; None if one is missing."""
    for name in path:
        if isinstance(value, Instance):
            value = _state_get(value.state, name)
        elif isinstance(value, Mapping):
            value = value.get(name)
        else:
            return None
    return value


def _state_get(state: Any, name: str) -> Any:
    """Look a name up in an object's state: a dict, or the (dict, slots) pair."""
    parts = state if isinstance(state, tuple) else (state,)
    found = (part.get(name) for part in parts if isinstance(part, Mapping))
    return next((value for value in found if value is not None), None)


class _Machine:
    """The stack and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.imports: set[tuple[str, str]] = set()

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise SymbolicError("unbalanced mark")
        return value

    def pop_mark(self) -> list[Any]:
        """Pop everything down to the last mark."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        if not 0 <= index < MAX_MEMO:
            raise SymbolicError("a memo beyond the limit")
        self.memo[index] = self.stack[-1]

    def dict_of_marked(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append(Mapping())
        self.set_items(values)

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Instance):
            target.items.extend(values)
        elif not isinstance(target, Unknown):
            raise SymbolicError("items added to a value that cannot have items")

    def set_one(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise SymbolicError("a key without a value")
        target = self.stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Mapping):
            target.pairs.extend(pairs)
        elif isinstance(target, Instance):
            target.items.extend(pairs)
        elif not isinstance(target, Unknown):
            raise SymbolicError("items set on a value that cannot have items")

    def name(self, argument: Any) -> None:
        self.stack.append(self.imported_from(argument))

    def name_of_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise SymbolicError("a global whose name is not a text")
        self.stack.append(self.imported(module, name))

    def imported_from(self, argument: Any) -> Global:
        module, _, name = str(argument).partition(" ")
        return self.imported(module, name)

    def imported(self, module: str, name: str) -> Global:
        self.imports.add((module, name))
        return Global(module, name)

    def call(self, _: Any) -> None:
        args, maker = self.pop(), self.pop()
        self.stack.append(Instance(maker, args))

    def call_with_keywords(self, _: Any) -> None:
        _keywords, args, maker = self.pop(), self.pop(), self.pop()
        self.stack.append(Instance(maker, args))

    def call_marked(self, _: Any) -> None:
        maker, *args = self.pop_mark()
        self.stack.append(Instance(maker, tuple(args)))

    def call_named(self, argument: Any) -> None:
        self.stack.append(Instance(self.imported_from(argument), tuple(self.pop_mark())))

    def build(self, _: Any) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, Unknown):
            # BUILD on a class would change the class: pickle does not write that
            raise SymbolicError("state set on a value that is not an object")


class _Marker(_Machine):
    """Finds out which `Marked` values name something."""

    def __init__(self) -> None:
        super().__init__()
        self.naming: set[int] = set()

    def set_items(self, values: list[Any]) -> None:
        values[::2] = map(self._as_name, values[::2])
        super().set_items(values)

    def imported(self, module: str, name: str) -> Global:
        return super().imported(self._as_name(module), self._as_name(name))

    def _as_name(self, value: Any) -> Any:
        if isinstance(value, Marked):
            self.naming.add(value.opcode)
            return str(value)
        return value


def _bounded(value: Any) -> Any:
    """Refuse literals beyond the limits before they are used."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() > MAX_INT_BYTES * 8:
        raise SymbolicError("an integer beyond the limit")
    if isinstance(value, str | bytes | bytearray) and len(value) > MAX_TEXT:
        return Unknown()
    return value


_BOUNDED = (
    "INT LONG LONG1 LONG4 STRING BINSTRING BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE BINUNICODE8"
).split()
_SHORT = (
    "BININT BININT1 BININT2 FLOAT BINFLOAT SHORT_BINSTRING SHORT_BINBYTES SHORT_BINUNICODE".split()
)

_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(_BOUNDED, lambda machine, value: machine.push(_bounded(value))),
    **dict.fromkeys(_SHORT, _Machine.push),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.pop_mark())),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.pop_mark())),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])
    ),
    **dict.fromkeys(("PROTO", "FRAME"), lambda _machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),  # noqa: FBT003
    "NEWFALSE": lambda machine, _: machine.push(False),  # noqa: FBT003
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push(Mapping()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "DICT": _Machine.dict_of_marked,
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "SETITEM": _Machine.set_one,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "OBJ": _Machine.call_marked,
    "INST": _Machine.call_named,
    "BUILD": _Machine.build,
}


class _ByCode(
    dict[bytes, tuple[Callable[[BytesIO], Any] | None, Callable[[_Machine, Any], object]]]
):
    """For each opcode, the reader of its argument and its operation."""

    def __missing__(self, code: bytes) -> Any:
        if not code:
            raise DamagedPickleError("pickle without an end")
        if code not in _NAMES:
            raise DamagedPickleError("malformed pickle: a byte that is not an opcode")
        # PERSID, BINPERSID, EXT1/2/4, NEXT_BUFFER, READONLY_BUFFER, or a newer opcode
        raise SymbolicError(f"opcode {_NAMES[code]} refers to something outside the pickle")


_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_BY_CODE = _ByCode(
    {
        opcode.code.encode("latin-1"): (
            opcode.arg.reader if opcode.arg is not None else None,
            _OPERATIONS[opcode.name],
        )
        for opcode in pickletools.opcodes
        if opcode.name in _OPERATIONS
    }
)
