"""Finding modules without importing any: a pickle may name a module that must not be imported."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

MAX_SOURCE_BYTES = 1024 * 1024
"""Size limit of a source file that is parsed; larger ones are generated."""


def is_missing(module: str) -> bool:
    """Whether a module cannot be imported here.

    Modules that a package creates during its import count as present.
    """
    try:
        _find(module)
    except ModuleNotFoundError:
        return True
    return False


def find_source(module: str) -> Path | None:
    """Return the source file of a module; None if there is none, or if it cannot be found."""
    try:
        spec = _find(module)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.has_location or not str(spec.origin).endswith(".py"):
        return None
    return Path(str(spec.origin))


def read_source(path: Path) -> bytes | None:
    """Read a source file; None if it cannot be read, or has more than `MAX_SOURCE_BYTES`."""
    try:
        with path.open("rb") as file:
            body = file.read(MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError):
        return None
    return body if len(body) <= MAX_SOURCE_BYTES else None


def _find(module: str) -> ModuleSpec | None:
    """Return the spec of a module; None if it has none, or if only an import of its package shows it.

    Raises:
        ModuleNotFoundError: If it does not exist.
    """
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth, part in enumerate(parts, 1):
        name = ".".join(parts[:depth])
        if name in sys.modules:
            spec = getattr(sys.modules[name], "__spec__", None)
            path = getattr(sys.modules[name], "__path__", None)
        elif not part.isidentifier():
            raise ModuleNotFoundError
        else:
            spec, path = _find_in(name, path)
        if path is None:  # not a package
            return spec if depth == len(parts) else None
        # a namespace package would look for its parent in sys.modules
        path = list(getattr(path, "_path", path))
    return spec


def _find_in(
    name: str, path: Sequence[str] | None
) -> tuple[ModuleSpec | None, Sequence[str] | None]:
    """Return the spec of a module in these directories, and the directories of its own modules."""
    try:
        finders = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next(filter(None, finders), None)
    except KeyError:  # a namespace package in another one; its parent is not imported
        below = (Path(entry, name.rpartition(".")[2]) for entry in path or ())
        return None, [str(directory) for directory in below if directory.is_dir()]
    if spec is None:
        raise ModuleNotFoundError
    return spec, spec.submodule_search_locations
