"""Which keys a function reads from its config, as far as its source shows. Nothing is executed."""

import ast
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_READERS = frozenset({"get", "pop", "setdefault"})
"""Methods of a dict whose first argument is a key."""

_NAMES_OF_FRAMES = frozenset("locals vars eval exec dir inspect".split())
_ATTRIBUTES_OF_FRAMES = frozenset("_getframe currentframe f_locals".split())
"""With these, code reaches variables that it does not name."""

_ALL_ATTRIBUTES = frozenset(
    "__dict__ __getattribute__ __getstate__ __reduce__ __reduce_ex__ get_config".split()
)
"""Attributes of a trainable that hold its config, too (`Trainable.get_config`, 2.60)."""


@dataclass(slots=True)
class Reads:
    """The keys that a function reads.

    Args:
        keys: Those in `config["k"]`, `config.get("k")`, `"k" in config` and the like.
        required: Those that every call reads as `config["k"]`.
        optional: Those that may be missing: a line tests or sets them, or gives a default.
        escapes: Whether the config is used in any other way: then other code may read other keys.
        passed: Calls that get the config as a positional argument: the name of the function, and the
            index of the argument.
    """

    keys: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    escapes: bool = False
    passed: set[tuple[str, int]] = field(default_factory=set)


def find_reads(
    function: Function,
    *,
    config: str | None = None,
    instance: str | None = None,
    arguments: tuple[str, int] | None = None,
    passes_to: Collection[str] = (),
) -> Reads:
    """Return what a function reads. A nested function that hides a name may add keys, never remove any.

    Args:
        function: Its syntax tree.
        config: The parameter that holds the config.
        instance: The parameter that holds the trainable itself (`self`), whose attribute `config` is one.
        arguments: The parameter `*args` that holds the config, and the index of the config in a call that
            gets all of them.
        passes_to: Methods of the trainable whose first argument is the config.
    """
    reader = _Reader(config, instance, arguments, passes_to)
    try:
        for node in function.body if isinstance(function.body, list) else [function.body]:
            reader.visit(node)
    except RecursionError:  # generated code: hundreds of `elif`
        return Reads(escapes=True)
    return reader.reads


class _Reader(ast.NodeVisitor):
    """Visits each use of the config; a use that no method allows is an escape."""

    def __init__(
        self,
        config: str | None,
        instance: str | None,
        arguments: tuple[str, int] | None,
        passes_to: Collection[str],
    ) -> None:
        self.reads = Reads()
        self._config = config
        self._instance = instance
        self._arguments = arguments
        self._passes_to = passes_to
        self._depth = 0
        self._branches = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: N802  a name of ast
        self._visit_scope(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:  # noqa: N802
        self._visit_scope(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: N802
        self._visit_scope(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:  # noqa: N802
        self._visit_scope(node)

    def _visit_scope(self, node: ast.AST) -> None:
        self._depth += 1
        self._visit_branch(node)
        self._depth -= 1

    def _visit_branch(self, node: ast.AST) -> None:
        self._branches += 1
        self.generic_visit(node)
        self._branches -= 1

    visit_If = visit_IfExp = visit_BoolOp = visit_Try = visit_TryStar = visit_Match = _visit_branch  # noqa: N815

    def visit_Name(self, node: ast.Name) -> None:  # noqa: N802
        names = (self._config, self._instance, self._arguments and self._arguments[0])
        if node.id in names or node.id in _NAMES_OF_FRAMES:  # used, or bound to another value
            self.reads.escapes = True

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        is_all = node.attr in _ALL_ATTRIBUTES and self._is_own(node.value)
        if self._is_config(node) or is_all or node.attr in _ATTRIBUTES_OF_FRAMES:
            self.reads.escapes = True
        elif not self._is_instance(node.value):
            self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:  # noqa: N802
        is_read = isinstance(node.ctx, ast.Load)
        if self._is_config(node.value) and self._add_key(node.slice, is_read=is_read):
            return
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:  # noqa: N802
        match node:
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn()], comparators=[right]):
                if self._is_config(right) and self._add_key(left):
                    return
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        match node.targets:
            case [ast.Attribute() as target] if self._is_config(target):
                if self._is_config(node.value):  # self.config = config
                    return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802
        arguments: Sequence[ast.expr] = node.args
        match node.func:
            case ast.Attribute(value=owner, attr=name) if self._is_config(owner):
                if name in _READERS and arguments and self._add_key(arguments[0]):
                    self._visit_all(arguments[1:], node.keywords)
                    return
            case ast.Attribute(value=owner, attr=name) if name in self._passes_to:
                if self._is_own(owner) and arguments and self._is_config(arguments[0]):
                    self.visit(node.func)
                    self._visit_all(arguments[1:], node.keywords)
                    return
            case ast.Name(id="super"):  # super(Class, self)
                self._visit_all([a for a in arguments if not self._is_instance(a)], node.keywords)
                return
            case ast.Name(id=name):
                self.visit(node.func)
                self._visit_all(self._pass_on(name, arguments), node.keywords)
                return
        self.generic_visit(node)

    def _pass_on(self, name: str, arguments: Sequence[ast.expr]) -> list[ast.expr]:
        """Note the config among the arguments of a call; return the arguments without it."""
        others: list[ast.expr] = []
        for index, argument in enumerate(arguments):
            # in a nested function, the name may be another one
            is_known = not self._depth and not any(
                isinstance(before, ast.Starred) for before in arguments[:index]
            )
            if is_known and isinstance(argument, ast.Name) and argument.id == self._config:
                self.reads.passed.add((name, index))
            elif is_known and self._is_arguments(argument) and self._arguments is not None:
                self.reads.passed.add((name, index + self._arguments[1]))
            else:
                others.append(argument)
        return others

    def _visit_all(self, nodes: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> None:
        for node in (*nodes, *keywords):
            self.visit(node)

    def _add_key(self, node: ast.expr, *, is_read: bool = False) -> bool:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.reads.keys.add(node.value)
            if not is_read:
                self.reads.optional.add(node.value)
            elif not self._branches:
                self.reads.required.add(node.value)
            return True
        return False

    def _is_config(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name == self._config
            case ast.Attribute(value=owner, attr="config"):
                return self._is_instance(owner)
        return False

    def _is_instance(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._instance

    def _is_own(self, node: ast.expr) -> bool:
        """Whether a node is `self`, or `super()`."""
        match node:
            case ast.Call(func=ast.Name(id="super")):
                return True
        return self._is_instance(node)

    def _is_arguments(self, node: ast.expr) -> bool:
        match node, self._arguments:
            case ast.Starred(value=ast.Name(id=name)), (own, _):
                return name == own
        return False
