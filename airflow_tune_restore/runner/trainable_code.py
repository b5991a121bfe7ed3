"""The code of a trainable: the modules that define it, and the config keys that it takes."""

import ast
import functools
import inspect
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_tune_restore.runner import modules
from airflow_tune_restore.runner.config_reads import Function, find_reads
from airflow_tune_restore.runner.given import as_trainable

_MOST_FUNCTIONS = 200
"""Functions that are read of one trainable."""

_GETS_CONFIG = frozenset(
    "__init__ setup reset_config default_resource_request resource_help".split()
)
"""Methods of a Trainable whose first argument is a config (ray.tune.trainable.trainable, 2.60)."""

_ALWAYS_RUN = frozenset({"__init__", "setup", "step"})
"""Methods that every trial runs."""

_WRAPPERS = "ray.tune.trainable.util"
"""The module whose classes and functions `tune.with_parameters` and `tune.with_resources` return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCode:
    """The known facts about the code of a trainable.

    Args:
        home: The module that defines it; "" if a wrapper hides that.
        modules: This module, and those of base classes and wrappers, without those of Ray.
        keys: The config keys that it takes; None if it may take any.
        required: The keys that every trial reads as `config["k"]`.
    """

    home: str
    modules: frozenset[str]
    keys: frozenset[str] | None
    required: frozenset[str]


def read_code(trainable: Any) -> TrainableCode:
    """Read the code of a trainable, as Tune takes it, without running it."""
    tracer = _Tracer()
    if isinstance(trainable, str):
        from ray.tune.registry import get_trainable_cls

        trainable = get_trainable_cls(trainable)
    tracer.trace(as_trainable(trainable), 0)
    keys = tracer.keys | tracer.mentioned
    # code that reads no key runs with any config
    is_known = tracer.is_complete and bool(tracer.keys)
    return TrainableCode(
        home=tracer.home or "",
        modules=frozenset(tracer.modules),
        keys=frozenset(keys) if is_known else None,
        required=frozenset(tracer.required - tracer.optional),
    )


class _Tracer:
    """Follows a trainable through its wrappers to the functions that read its config."""

    def __init__(self) -> None:
        self.home: str | None = None
        self.modules: set[str] = set()
        self.keys: set[str] = set()
        self.required: set[str] = set()
        self.optional: set[str] = set()
        self.mentioned: set[str] = set()
        self.is_complete = True
        self._seen: set[tuple[int, int]] = set()

    def trace(self, value: Any, index: int) -> None:
        """Follow a callable that gets the config as its positional argument of this index."""
        from ray.tune import PlacementGroupFactory

        if isinstance(value, PlacementGroupFactory):  # callable, but it does not read its arguments
            return
        if isinstance(value, type):
            self._trace_class(value)
            return
        if isinstance(value, functools.partial):
            self.trace(value.func, index + len(value.args))
        elif isinstance(value, types.MethodType):
            self.trace(value.__func__, index + 1)
        elif isinstance(value, types.FunctionType):
            self._trace_function(value, index)
        else:
            self.is_complete = False
        if (resources := getattr(value, "_resources", None)) is not None:
            self.trace(resources, 0)  # of tune.with_resources

    def _trace_function(self, function: types.FunctionType, index: int) -> None:
        if (id(function), index) in self._seen or len(self._seen) > _MOST_FUNCTIONS:
            self.is_complete = self.is_complete and len(self._seen) <= _MOST_FUNCTIONS
            return
        self._seen.add((id(function), index))
        self._note_modules(function)
        source = self._read(function)
        if source is None:
            return
        names = [argument.arg for argument in (*source.args.posonlyargs, *source.args.args)]
        if index < len(names):
            reads = find_reads(source, config=names[index])
        elif source.args.vararg is not None:
            given = (source.args.vararg.arg, index - len(names))
            reads = find_reads(source, arguments=given)
        else:
            self.is_complete = False
            return
        self.keys |= reads.keys
        self.required |= reads.required
        self.optional |= reads.optional
        self.is_complete = self.is_complete and not reads.escapes
        for name, position in reads.passed:
            self._trace_cell(function, source, name, position)

    def _trace_cell(
        self, function: types.FunctionType, source: Function, name: str, index: int
    ) -> None:
        """Follow a call of a function that the caller's closure holds, as that of a wrapper does."""
        bound = {
            node.id
            for node in ast.walk(source)
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
        }
        try:
            held = _cells(function)[name].cell_contents
        except (
            KeyError,
            ValueError,
        ):  # a global, which may be anything when it is called; or empty
            self.is_complete = False
            return
        if name in bound or not callable(held):
            self.is_complete = False
        else:
            self.trace(held, index)

    def _trace_class(self, kind: type) -> None:
        from ray.tune import Trainable
        from ray.tune.trainable import FunctionTrainable

        if issubclass(kind, FunctionTrainable):
            self._trace_wrapped_function(kind)
        elif not issubclass(kind, Trainable):
            self.is_complete = False
            return
        known = (Trainable.__module__, FunctionTrainable.__module__, "builtins", "abc", "typing")
        bases = [base for base in kind.__mro__ if base.__module__ not in known]
        for base in bases:  # the innermost first
            self._note_modules(base)
        for base in bases:
            if _is_of_ray(base.__module__) and base.__module__ != _WRAPPERS:
                self.is_complete = False  # it takes keys of its own
                continue
            for name, value in vars(base).items():
                self._trace_member(kind, name, value)

    def _trace_wrapped_function(self, kind: type) -> None:
        """Follow the function in the class that Ray makes of it (`wrap_function`, 2.60)."""
        method = getattr(kind, "_trainable_func", None)
        cells = _cells(method) if isinstance(method, types.FunctionType) else {}
        if "train_func" in cells and _is_of_ray(method.__module__):
            self.trace(cells["train_func"].cell_contents, 0)
        else:
            self.is_complete = False

    def _trace_member(self, kind: type, name: str, value: Any) -> None:
        """Read an attribute of a class; `self.config` may be read in each of its methods."""
        functions: list[Any] = [value]
        if isinstance(value, staticmethod | classmethod):
            functions = [value.__func__]
        elif isinstance(value, property):
            functions = [value.fget, value.fset, value.fdel]
        elif isinstance(value, functools.cached_property):
            functions = [value.func]
        elif isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
            functions = []
        if name in ("config", "__getattribute__"):
            self.is_complete = False
        for function in functions:
            if isinstance(function, types.FunctionType):
                is_static = isinstance(value, staticmethod)
                self._trace_method(kind, function, name, is_static=is_static)
            elif hasattr(type(function), "__get__"):
                self.is_complete = False  # it may get the trainable

    def _trace_method(
        self, kind: type, function: types.FunctionType, name: str, *, is_static: bool
    ) -> None:
        source = self._read(function)
        if source is None:
            return
        names = [argument.arg for argument in (*source.args.posonlyargs, *source.args.args)]
        instance = None if is_static or not names else names.pop(0)
        config = self._config_of(name, names) if name in _GETS_CONFIG else None
        reads = find_reads(source, config=config, instance=instance, passes_to=_GETS_CONFIG)
        self.keys |= reads.keys
        self.optional |= reads.optional
        if name in _ALWAYS_RUN and inspect.getattr_static(kind, name) is function:
            self.required |= reads.required
        has_hidden_instance = instance is None and not is_static
        self.is_complete = self.is_complete and not reads.escapes and not has_hidden_instance
        for called, position in reads.passed:
            self._trace_cell(function, source, called, position)

    def _config_of(self, method: str, names: list[str]) -> str | None:
        """Return the parameter of a method that gets the config."""
        if method == "__init__":  # Ray gives it by name
            names = [name for name in names if name == "config"]
        if not names:
            self.is_complete = False
            return None
        return names[0]

    def _note_modules(self, value: Any) -> None:
        """Note the module of a function or class, and those of the functions that it wraps.

        The first one that is noted is the home of the trainable, unless another function made it: then
        the trainables of several teams may come from its module.
        """
        noted = [value]
        while len(noted) < _MOST_FUNCTIONS:
            if (wrapped := getattr(noted[-1], "__wrapped__", None)) is None:
                break
            noted.append(wrapped)
        if self.home is None and _module_of(value):
            is_made = "<locals>" in getattr(value, "__qualname__", "")
            self.home = "" if is_made else _module_of(noted[-1])
        if isinstance(value, types.FunctionType):
            noted += [held for held in map(_content, _cells(value).values()) if callable(held)]
        self.modules.update(filter(None, map(_module_of, noted)))

    def _read(self, function: types.FunctionType) -> Function | None:
        """Return the syntax tree of a function; without one, it may take any key."""
        code = function.__code__
        source = read_module(Path(code.co_filename))
        found = source.function(code) if source is not None else None
        if source is None or found is None:
            self.is_complete = False
            return None
        if not _is_of_ray(function.__module__ or ""):
            self.mentioned |= source.texts
        return found


def _cells(function: types.FunctionType) -> dict[str, types.CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _module_of(value: Any) -> str:
    """Return the module of a function or class; "" if it is of no user."""
    module = getattr(value, "__module__", None)
    is_known = isinstance(module, str) and module not in ("__main__", "builtins")
    return str(module) if is_known and not _is_of_ray(str(module)) else ""


def _is_of_ray(module: str) -> bool:
    return module.partition(".")[0] == "ray"


class ModuleSource:
    """A parsed module.

    Args:
        tree: Its syntax tree.
        texts: Its text literals, and the names of keyword arguments: the module of a sweep may name a key
            that its trainable does not read, in its param_space.
        imports: The modules that it may import, anywhere in it; relative names begin with a point.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.texts: set[str] = set()
        self.imports: set[str] = set()
        self._functions: list[Function] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.texts.add(node.value)
            elif isinstance(node, ast.keyword) and node.arg is not None:
                self.texts.add(node.arg)
            elif isinstance(node, Function):
                self._functions.append(node)
            elif isinstance(node, ast.Import):
                self.imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parent = "." * node.level + (node.module or "")
                below = parent if parent.endswith(".") else f"{parent}."
                self.imports |= {parent, *(f"{below}{alias.name}" for alias in node.names)}

    @property
    def imports_ray(self) -> bool:
        """Whether any line imports Ray."""
        return any(map(_is_of_ray, self.imports))

    def may_define_trainable(self, name: str) -> bool:
        """Whether a class with a base, or a function with an argument, has this name."""
        for node in self.tree.body:
            match node:
                case (
                    ast.FunctionDef(name=found, args=args)
                    | ast.AsyncFunctionDef(name=found, args=args)
                ) if found == name:
                    return bool(args.posonlyargs or args.args or args.vararg)
                case ast.ClassDef(name=found, bases=bases) if found == name:
                    return bool(bases)
        return False

    def function(self, code: types.CodeType) -> Function | None:
        """Return the function that was compiled to this code; None if it is not clear which one."""
        matching = [node for node in self._functions if _is_compiled_to(node, code)]
        return matching[0] if len(matching) == 1 else None


def _is_compiled_to(node: Function, code: types.CodeType) -> bool:
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    lines = [node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return (
        name == code.co_name
        and min(lines) == code.co_firstlineno
        and names == list(code.co_varnames[:count])
    )


@functools.lru_cache(maxsize=100)
def read_module(path: Path) -> ModuleSource | None:
    """Parse a source file; None if it cannot be read or parsed, or is too large."""
    body = modules.read_source(path)
    try:
        return ModuleSource(ast.parse(body)) if body is not None else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
