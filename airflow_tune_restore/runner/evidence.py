"""Whether an experiment was made with the given trainable, or with another one of the same name.

Ray records only the name (`TunerInternal._validate_trainable`, ray.tune.impl, 2.60), and many teams call
their function `train`. Two other records count as evidence: the modules that pickles of the experiment
name, and the parameters that were searched. Code is read, never run, and no pickle is loaded.
"""

import contextlib
import re
import sys
from collections.abc import Collection, Sequence
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


def match(store: ObjectStore, given: Given, experiment: ExperimentToCheck) -> tuple[MatchedBy, str]:
    """Return the evidence for the trainable, and a warning if evidence is against it; else "".

    Raises:
        TrainableMisfitError: If evidence is against it, unless the user chose `trust_name`.
    """
    code = read_code(given.trainable)
    recorded = read_recorded(store, experiment)
    own = _OwnModules({*code.modules, given.text.partition(":")[0]})
    named = list(dict.fromkeys(one.module for one in recorded.imports))[:_MOST_MODULES]
    if any(own.has(module) for module in named):
        return MatchedBy.MODULE, ""
    others = [one for one in recorded.imports if one.module in named and not own.uses(one.module)]
    doubt = _other_definition(others, given.name) or _foreign_parameters(given, code, recorded)
    if not doubt:
        return MatchedBy.NAME, ""
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


class _OwnModules:
    """The modules of the given trainable. A file that is imported under two names is one module."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._files: set[Path] = set()
        self._imports: set[str] = set()
        for module in filter(None, map(sys.modules.get, names)):
            if file := getattr(module, "__file__", None):
                self._files.add(Path(file).resolve())
                source = read_module(Path(file))
                for name in source.imports if source is not None else ():
                    with contextlib.suppress(ImportError):  # above the top package
                        self._imports.add(resolve_name(name, module.__package__ or ""))

    def has(self, module: str) -> bool:
        """Whether a module is one of them."""
        if module in self._names:
            return True
        source = _find_source(module)
        return source is not None and source.resolve() in self._files

    def uses(self, module: str) -> bool:
        """Whether one of them imports a module: a repaired trainable may wrap the one with the bug."""
        return module in self._imports


def _find_source(module: str) -> Path | None:
    """Return the source file of a module that may be a user's."""
    root = module.partition(".")[0]
    if root in ("ray", "__main__") or root in sys.stdlib_module_names:
        return None
    return modules.find_source(module)


def _other_definition(imports: Sequence[Import], name: str) -> str:
    """Return in words that a recorded module defines another trainable of this name; "" if none does."""
    for one in sorted(imports, key=lambda one: one.name != name):
        symbol = f"{one.module}.{one.name}"
        if one.name == name and modules.is_missing(one.module):
            return f"{one.place} names {symbol}"
        source = _find_source(one.module)
        if source is not None and _defines_trainable(source, name):
            what = "" if one.name == name else f", and {one.module} defines {name!r}"
            return f"{one.place} names {symbol}{what}"
    return ""


def _defines_trainable(source: Path, name: str) -> bool:
    """Whether a source file defines what may be a trainable of this name.

    A library may define a function of the name, too, such as `xgboost.train`. So an installed module must
    also import Ray.
    """
    definition = rf"^(async\s+)?(def|class)\s+{re.escape(name)}\b".encode()
    if re.search(definition, modules.read_source(source) or b"", re.MULTILINE) is None:
        return False  # most sources are not parsed
    module = read_module(source)
    if module is None or not module.may_define_trainable(name):
        return False
    return module.imports_ray or not _INSTALLED & set(source.parts)


def _foreign_parameters(given: Given, code: TrainableCode, recorded: Recorded) -> str:
    """Return in words which searched parameters the code does not take; "" if it takes all."""
    if code.keys is None:
        return ""
    space = given.param_space
    taken = code.keys | _OF_RAY | (set(space) if isinstance(space, dict) else set())
    for trial_id, keys in recorded.searched.items():
        foreign = sorted(key for key in keys - taken if not key.startswith("__"))
        if foreign:
            shown = ", ".join(repr(key[:60]) for key in foreign[:_SHOWN_KEYS])
            more = f" and {len(foreign) - _SHOWN_KEYS} more" if len(foreign) > _SHOWN_KEYS else ""
            count = counted(len(foreign), "searched parameter")
            return f"trial {trial_id} has {count} that {given.text} does not take: {shown}{more}"
    return ""
