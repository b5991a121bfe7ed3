"""Whether an experiment was made with the given trainable, or with another one of the same name.

Ray records only the name (`TunerInternal._validate_trainable`, ray.tune.impl, 2.60), and many teams call
their function `train`. Two other records count as evidence: the modules that pickles of the experiment
name, and the parameters that were searched (docs/adr/0056-name-evidence.md). Code is read, never run, and
no pickle is loaded.
"""

import contextlib
import functools
import itertools
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

from airflow_tune_restore.exceptions import TrainableMisfitError
from airflow_tune_restore.protocol.check import ExperimentToCheck, MatchedBy
from airflow_tune_restore.protocol.printable import counted, printable
from airflow_tune_restore.runner import modules
from airflow_tune_restore.runner.given import Given
from airflow_tune_restore.runner.recorded import Import, Recorded, read_recorded
from airflow_tune_restore.runner.trainable_code import TrainableCode, read_code, read_module
from airflow_tune_restore.storage.base import ObjectStore

_OF_RAY = frozenset("env callbacks log_sys_usage logger_config wandb mlflow comet".split())
"""Keys that Ray reads (experiment.trial, trainable.trainable, air.integrations, 2.60), and those of the
integrations of older versions. Keys such as `__trial_index__` are Ray's, too."""

_INSTALLED = frozenset({"site-packages", "dist-packages"})

_SHOWN_KEYS = 5
_MOST_MODULES = 200
"""Modules of one experiment whose source is looked for."""

_MOST_IMPORTED = 200
"""Modules of the user whose imports are followed."""


def match(store: ObjectStore, given: Given, experiment: ExperimentToCheck) -> tuple[MatchedBy, str]:
    """Return the evidence for the trainable, and a warning if evidence is against it; else "".

    Raises:
        TrainableMisfitError: If the evidence is strong, unless the user chose `trust_name`.
    """
    code = read_code(given.trainable)
    recorded = read_recorded(store, experiment)
    module, colon, _ = given.text.partition(":")
    home = _Modules({name for name in (code.home, colon and module) if name})
    used = _Modules({*code.modules, *home.names})
    named = list(dict.fromkeys(one.module for one in recorded.imports))[:_MOST_MODULES]
    imports = [one for one in recorded.imports if one.module in named]
    doubt = _other_trainable(imports, given.name, used)
    if not doubt and any(map(home.have, named)):
        return MatchedBy.MODULE, ""
    foreign = _foreign_parameters(given, code, recorded)
    doubt = doubt or _other_definition(imports, given.name, used) or foreign.doubt
    if not doubt:
        return MatchedBy.NAME, printable(foreign.warning, 1000)
    error = printable(
        f"{store.uri} was probably made with another trainable of the name {given.name!r}: {doubt}",
        1000,
    )
    advice = f"restore with trust_name=True (--trust-name) if {given.text} is the right one"
    if not experiment.trust_name:
        raise TrainableMisfitError(
            f"{error}. Give the trainable that the experiment was made with, or leave the experiment to "
            f"its own restore (another prefix, include, exclude); {advice}."
        )
    return MatchedBy.NAME, f"trust_name (--trust-name): {given.text} is used although {error}."


class _Modules:
    """Modules of the given trainable. A file that is imported under two names is one module."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        loaded = [getattr(sys.modules.get(name), "__file__", None) for name in names]
        self._files = {Path(file).resolve() for file in loaded if file}

    def have(self, module: str) -> bool:
        """Whether a module is one of them."""
        if module in self.names:
            return True
        source = _find_source(module)
        return source is not None and source.resolve() in self._files

    def reach(self, module: str) -> bool:
        """Whether a module is one of them, or they import it, directly or through the user's modules.

        A repaired trainable may wrap the one with the bug, and a model may have a function `train`.
        """
        return self.have(module) or module in self._imported

    @functools.cached_property
    def _imported(self) -> set[str]:
        found = dict.fromkeys(self.names)  # in the order of the search
        queue = list(found)
        for name in itertools.islice(queue, _MOST_IMPORTED):  # it grows meanwhile
            path = _find_source(name)
            imports = _imports_of(path, name) if path is not None else ()
            new = [imported for imported in imports if imported not in found]
            found |= dict.fromkeys(new)
            queue += [imported for imported in new if _is_of_user(imported)]
        return set(found)


@functools.lru_cache(maxsize=2 * _MOST_IMPORTED)
def _imports_of(path: Path, name: str) -> frozenset[str]:
    """Return the modules that the source of a module may import, with their packages."""
    source = read_module(path)
    if source is None:
        return frozenset()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for text in source.imports:
        with contextlib.suppress(ImportError):  # above the top package
            parts = resolve_name(text, package).split(".")
            found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return frozenset(found)


def _is_of_user(module: str) -> bool:
    source = _find_source(module)
    return source is not None and not _INSTALLED & set(source.parts)


def _find_source(module: str) -> Path | None:
    """Return the source file of a module that may be a user's."""
    root = module.partition(".")[0]
    if root in ("ray", "__main__") or root in sys.stdlib_module_names:
        return None
    return modules.find_source(module)


def _other_trainable(imports: Sequence[Import], name: str, used: _Modules) -> str:
    """Return in words that a pickle names another trainable of this name; "" if none does."""
    for one in imports:
        if one.name != name or used.have(one.module):
            continue
        is_other = modules.is_missing(one.module) or _defines_trainable(one.module, name)
        if is_other and not used.reach(one.module):
            return f"{one.place} names {one.module}.{one.name}"
    return ""


def _other_definition(imports: Sequence[Import], name: str, used: _Modules) -> str:
    """Return in words that a module in a pickle defines another trainable of this name, or "".

    The module must import Ray: a script or a model may have a function of the name, too.
    """
    for one in imports:
        is_other = _defines_trainable(one.module, name, must_import_ray=True)
        if is_other and not used.reach(one.module):
            return f"{one.place} names {one.module}.{one.name}, and {one.module} defines {name!r}"
    return ""


def _defines_trainable(module: str, name: str, *, must_import_ray: bool = False) -> bool:
    """Whether the source of a module defines what may be a trainable of this name.

    A library may define a function of the name, too, such as `xgboost.train`. So an installed module must
    also import Ray.
    """
    path = _find_source(module)
    definition = rf"^(async\s+)?(def|class)\s+{re.escape(name)}\b".encode()
    if path is None or not re.search(definition, modules.read_source(path) or b"", re.MULTILINE):
        return False  # most sources are not parsed
    source = read_module(path)
    if source is None or not source.may_define_trainable(name):
        return False
    return source.imports_ray or not (must_import_ray or _INSTALLED & set(path.parts))


@dataclass(frozen=True, slots=True)
class _Foreign:
    """Searched parameters that the code does not take, in words: a doubt, or only a warning."""

    doubt: str = ""
    warning: str = ""


def _foreign_parameters(given: Given, code: TrainableCode, recorded: Recorded) -> _Foreign:
    """Compare the searched parameters with those that the code takes.

    One that it does not take may be a number of repetitions, or a value for a callback: a warning. It is
    a doubt if the code takes none of them, or needs keys that no trial has.
    """
    if code.keys is None:
        return _Foreign()
    space = given.param_space
    taken = code.keys | _OF_RAY | (set(space) if isinstance(space, dict) else set())
    searched = {key for key in recorded.searched - _OF_RAY if not key.startswith("__")}
    foreign = searched - taken
    if not foreign:
        return _Foreign()
    count = counted(len(foreign), "searched parameter")
    text = f"{given.text} does not take {count} of the trials: {_list_keys(foreign)}"
    if missing := code.required - recorded.keys:
        return _Foreign(doubt=f"{text}. It needs {_list_keys(missing)}, which no trial has")
    if foreign == searched:
        return _Foreign(doubt=f"{text}. It takes no other searched parameter either")
    return _Foreign(
        warning=f"{text}. It takes the others, so it is used. If another trainable of the name "
        f"{given.name!r} made this experiment, leave it out (another prefix, include, exclude)."
    )


def _list_keys(keys: Collection[str]) -> str:
    shown = ", ".join(repr(key[:60]) for key in sorted(keys)[:_SHOWN_KEYS])
    return f"{shown} and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else shown
