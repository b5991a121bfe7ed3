"""From `package.module:attribute` to a trainable or param_space, checked as Ray would check them."""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError


def load_trainable(name: str, imports: Sequence[str] = ()) -> Any:
    """Load a trainable: `package.module:attribute`, or a name registered with Tune.

    Args:
        name: Which one.
        imports: Modules to import first; they may register trainables.

    Raises:
        InvalidInputError: If it cannot be loaded, or is nothing that Tune can train.
    """
    for module in imports:
        _import(module, f"import {module}")
    if ":" not in name:
        return _registered(name)
    value = _resolve(name, "trainable")
    if not (callable(value) or _is_trainer(value)):
        raise InvalidInputError(
            f"trainable {name} is a {type(value).__name__}, not a function, Trainable or trainer."
        )
    return value


def load_param_space(name: str) -> dict[str, Any]:
    """Load a re-specified param_space: a dict, or a function without arguments that makes one.

    Raises:
        InvalidInputError: If it cannot be loaded, or is none.
    """
    value = _resolve(name, "param_space")
    if callable(value) and not hasattr(value, "to_dict"):
        value = value()
    if not isinstance(value, dict) and not hasattr(value, "to_dict"):
        raise InvalidInputError(f"param_space {name} is a {type(value).__name__}, not a dict.")
    return value  # type: ignore[no-any-return]


def check_trainable_name(trainable: Any, recorded: str, given: str) -> None:
    """Compare names as `TunerInternal._validate_trainable` does (ray.tune.impl, 2.60).

    Raises:
        InvalidInputError: If the experiment was made with another trainable.
    """
    from ray.tune.experiment import Experiment

    converted = trainable.as_trainable() if _is_trainer(trainable) else trainable
    actual = Experiment.get_trainable_name(converted)
    if recorded and actual != recorded:
        raise InvalidInputError(
            f"trainable {given} is known to Tune as {actual!r}, but the experiment was made with "
            f"{recorded!r}. Give the trainable the experiment was made with."
        )


def _resolve(name: str, what: str) -> Any:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InvalidInputError(f"{what} {name!r} is not of the form package.module:attribute.")
    value = _import(module_name, f"{what} {name}")
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise InvalidInputError(
                f"{what} {name}: {module_name} has no {path!r}. Is the name spelt right?"
            ) from None
    return value


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"{what}: there is no module {error.name!r} here. "
            "It must be importable where Ray runs (PYTHONPATH, image or runtime_env)."
        ) from error
    except Exception as error:  # the user's module may raise anything at import
        raise InvalidInputError(
            f"{what}: importing {module} failed with {type(error).__name__}: {error}"
        ) from error


def _registered(name: str) -> str:
    from ray.tune.error import TuneError
    from ray.tune.registry import validate_trainable

    try:
        validate_trainable(name)
    except TuneError:
        known = [m.name for m in pkgutil.iter_modules() if m.name == name]
        hint = f" Did you mean an attribute of it, {name}:train?" if known else ""
        raise InvalidInputError(
            f"trainable {name!r} is not registered with Tune. Import the module that registers it "
            f"(imports), or give package.module:attribute.{hint}"
        ) from None
    return name


def _is_trainer(value: Any) -> bool:
    """Whether it is one of Ray Train's trainers, which Tune takes through `as_trainable`."""
    return not isinstance(value, type) and hasattr(value, "as_trainable")
