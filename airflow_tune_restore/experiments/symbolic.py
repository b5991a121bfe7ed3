"""What a pickle says, without doing any of it.

A small stack machine over `pickletools.genops`. It imports nothing, calls nothing and hashes
nothing that comes from the input: globals, calls and objects become plain records. A
`pickle.Unpickler` with a `find_class` that returns stubs is not safe (extension codes, hash bombs,
BUILD on a class); this is. Opcodes that refer to something outside the pickle are refused, and size,
length and memo are bounded, so hostile input ends in a `SymbolicError`, never in a hang.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 16 * 1024 * 1024
MAX_OPCODES = 200_000
MAX_MEMO = 100_000
MAX_INT_BYTES = 64
MAX_TEXT = 1024 * 1024


class SymbolicError(ValueError):
    """The bytes are no pickle we are willing to read."""


@dataclass(slots=True, eq=False)
class Global:
    """A name the pickle would import."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Instance:
    """An object the pickle would make: who makes it, from what, and the state set afterwards."""

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
    """A dict, as pairs: nothing is hashed."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """Return the last value stored under a text key, or None."""
        for name, value in reversed(self.pairs):
            if type(name) is str and name == key:
                return value
        return None


@dataclass(slots=True, eq=False)
class Unknown:
    """A value we do not follow."""


class _Mark:
    """The MARK on the stack."""


_MARK = _Mark()


def read_pickle(body: bytes) -> Any:
    """Read a pickle symbolically.

    Returns:
        Scalars, lists and tuples as themselves; dicts as `Mapping`, objects as `Instance`, imported
        names as `Global`.

    Raises:
        SymbolicError: If the bytes are no pickle, exceed the limits, or refer outside.
    """
    if len(body) > MAX_BYTES:
        raise SymbolicError(f"pickle of {len(body)} bytes; the limit is {MAX_BYTES}")
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(body)):
            if count >= MAX_OPCODES:
                raise SymbolicError(f"more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except SymbolicError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        # what pickletools and an unbalanced stack raise on malformed input
        raise SymbolicError(f"malformed pickle: {error}") from error
    raise SymbolicError("pickle without an end")


def attribute(value: Any, *path: str) -> Any:
    """Follow attribute or key names through `Instance` and `Mapping`; None where the trail ends."""
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
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, Mapping):
            found = part.get(name)
            if found is not None:
                return found
    return None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        operation = _OPERATIONS.get(name)
        if operation is not None:
            operation(self)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(_bounded(argument))
        elif name in _MEMO_PUTS:
            self.put(argument)
        elif name in _MEMO_GETS:
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            module, _, attr = str(argument).partition(" ")
            self.stack.append(Global(module, attr))
        elif name == "INST":
            module, _, attr = str(argument).partition(" ")
            self.stack.append(Instance(Global(module, attr), tuple(self.pop_mark())))
        elif name not in _IGNORED:
            # PERSID, BINPERSID, EXT1/2/4, NEXT_BUFFER, READONLY_BUFFER and whatever comes one day
            raise SymbolicError(f"opcode {name} refers to something outside the pickle")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise SymbolicError("unbalanced mark")
        return value

    def top(self) -> Any:
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        values: list[Any] = []
        while True:
            value = self.stack.pop()
            if value is _MARK:
                values.reverse()
                return values
            values.append(value)

    def put(self, index: int) -> None:
        if not 0 <= index < MAX_MEMO:
            raise SymbolicError(f"memo index {index}")
        self.memo[index] = self.top()

    def call(self) -> None:
        args, maker = self.pop(), self.pop()
        self.stack.append(Instance(maker, args))

    def call_with_keywords(self) -> None:
        _keywords, args, maker = self.pop(), self.pop(), self.pop()
        self.stack.append(Instance(maker, args))

    def call_marked(self) -> None:
        maker, *args = self.pop_mark()
        self.stack.append(Instance(maker, tuple(args)))

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, Unknown):
            # BUILD on a class would change it for everybody: nobody honest writes that
            raise SymbolicError("state set on something that is no object")

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Instance):
            target.items.extend(values)
        elif not isinstance(target, Unknown):
            raise SymbolicError("items added to something that holds none")

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise SymbolicError("a key without a value")
        target = self.top()
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Mapping):
            target.pairs.extend(pairs)
        elif isinstance(target, Instance):
            target.items.extend(pairs)
        elif not isinstance(target, Unknown):
            raise SymbolicError("items set on something that holds none")

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise SymbolicError("a global whose name is no text")
        self.stack.append(Global(module, name))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def set_single(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])


def _bounded(value: Any) -> Any:
    """Refuse literals nobody honest writes, before anything is done with them."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() > MAX_INT_BYTES * 8:
        raise SymbolicError("an integer of absurd size")
    if isinstance(value, str | bytes | bytearray) and len(value) > MAX_TEXT:
        return Unknown()
    return value


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT "
    "BINFLOAT".split()
)
_MEMO_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_MEMO_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_IGNORED = frozenset({"PROTO", "FRAME"})


def _pop(machine: _Machine) -> None:
    machine.stack.pop()


def _dict_from_mark(machine: _Machine) -> None:
    values = machine.pop_mark()
    machine.stack.append(Mapping())
    machine.set_items(values)


def _pop_mark(machine: _Machine) -> None:
    machine.pop_mark()


_OPERATIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": lambda m: m.stack.append(_MARK),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DICT": _dict_from_mark,
    "DUP": lambda m: m.stack.append(m.top()),
    "MEMOIZE": lambda m: m.put(len(m.memo)),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_TUPLE": lambda m: m.stack.append(()),
    "EMPTY_DICT": lambda m: m.stack.append(Mapping()),
    "EMPTY_SET": lambda m: m.stack.append([]),
    "LIST": lambda m: m.stack.append(m.pop_mark()),
    "TUPLE": lambda m: m.stack.append(tuple(m.pop_mark())),
    "FROZENSET": lambda m: m.stack.append(m.pop_mark()),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "APPEND": lambda m: m.append([m.pop()]),
    "APPENDS": lambda m: m.append(m.pop_mark()),
    "ADDITEMS": lambda m: m.append(m.pop_mark()),
    "SETITEM": _Machine.set_single,
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "OBJ": _Machine.call_marked,
    "BUILD": _Machine.build,
}
