"""From `package.module:attribute` to a trainable or param_space, checked as Ray would check them."""

import importlib
import pickle
import pkgutil
from collections.abc import Sequence
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import RunnerRequest
from airflow_tune_restore.runner import ray_internals
from airflow_tune_restore.storage.base import ObjectStore

MAX_TUNER_BYTES = 512 * 1024 * 1024


def load(
    store: ObjectStore | None, request: RunnerRequest
) -> tuple[Any, dict[str, Any] | None, bool]:
    """Load what the user gave, and refuse what does not fit the experiment. Starts no Ray.

    Returns:
        The trainable, the param_space if one is given, and whether tuner.pkl can be used.

    Raises:
        InvalidInputError: Before anything was started.
    """
    ray_internals.check()
    trainable = load_trainable(request.trainable, request.imports)
    check_trainable_name(trainable, request.trainable_name, request.trainable)
    param_space = load_param_space(request.param_space) if request.param_space else None
    tuner = _read_tuner(store) if store is not None else None
    if tuner is not None and param_space is not None:
        _check_param_space(param_space, tuner)
    return trainable, param_space, tuner is not None


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
    if callable(value) or _is_trainer(value):
        return value
    text = f"trainable {name} is a {type(value).__name__}, not a function, Trainable or trainer."
    if type(value).__module__.startswith("ray.train.v2"):
        text += " Trainers of Ray Train V2 cannot be tuned; set RAY_TRAIN_V2_ENABLED=0."
    raise InvalidInputError(text)


def load_param_space(name: str) -> dict[str, Any]:
    """Load a re-specified param_space: a dict, or a function without arguments that makes one.

    Raises:
        InvalidInputError: If it cannot be loaded, or is none.
    """
    value = _resolve(name, "param_space")
    if callable(value) and not hasattr(value, "to_dict"):
        try:
            value = value()
        except Exception as error:  # the user's function may raise anything
            raise InvalidInputError(
                f"param_space {name}: calling it failed with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(value, dict) and not hasattr(value, "to_dict"):
        raise InvalidInputError(f"param_space {name} is a {type(value).__name__}, not a dict.")
    return value  # type: ignore[no-any-return]


def check_trainable_name(trainable: Any, recorded: str, given: str) -> None:
    """Compare names as `TunerInternal._validate_trainable` does (ray.tune.impl, 2.60).

    Raises:
        InvalidInputError: If the experiment was made with another trainable.
    """
    from ray.tune.experiment import Experiment

    actual = Experiment.get_trainable_name(as_trainable(trainable))
    if recorded and actual != recorded:
        raise InvalidInputError(
            f"trainable {given} is known to Tune as {actual!r}, but the experiment was made with "
            f"{recorded!r}. Give the trainable the experiment was made with."
        )


def _read_tuner(store: ObjectStore) -> dict[str, Any] | None:
    """Read tuner.pkl as Tuner.restore does; None if it is missing or damaged.

    Raises:
        InvalidInputError: If it needs something that is not here: a user's callback, stopper, searcher.
    """
    from ray import cloudpickle

    try:
        state: dict[str, Any] = cloudpickle.loads(
            store.get(layout.TUNER_FILE, max_bytes=MAX_TUNER_BYTES)
        )
    except (KeyNotFoundError, EOFError, pickle.UnpicklingError, ValueError, IndexError, KeyError):
        return None
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"tuner.pkl of {store.uri} needs something that is not importable here: {error}. Its "
            "callbacks, stopper, searcher and scheduler must be importable where Ray runs."
        ) from error
    return state if isinstance(state, dict) else None


def _check_param_space(param_space: Any, tuner: dict[str, Any]) -> None:
    """Compare the keys as Ray will (ray.tune.impl.tuner_internal, 2.60)."""
    from ray.tune.impl.tuner_internal import TunerInternal

    flat = param_space.to_dict() if hasattr(param_space, "to_dict") else param_space
    try:
        TunerInternal._validate_param_space_on_restore(
            None, flat, tuner.get("__flattened_param_space_keys")
        )
    except ValueError as error:
        raise InvalidInputError(" ".join(str(error).split())) from error


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


def as_trainable(value: Any) -> Any:
    """Return what Tune trains: of a trainer, its trainable."""
    return value.as_trainable() if _is_trainer(value) else value


def _is_trainer(value: Any) -> bool:
    """Whether it is one of Ray Train's trainers, which Tune takes through `as_trainable`."""
    return not isinstance(value, type) and hasattr(value, "as_trainable")
