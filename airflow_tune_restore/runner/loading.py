"""From `package.module:attribute` to a trainable or param_space, checked as Ray would check them."""

import importlib
import os
import pickle
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    InvalidInputError,
    KeyNotFoundError,
    TooLargeError,
)
from airflow_tune_restore.protocol import layout, pickle_reader
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import main_module
from airflow_tune_restore.runner.tune import private_api
from airflow_tune_restore.storage.base import ObjectStore

MAX_TUNER_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a run is made of.

    Args:
        trainable: What is trained.
        param_space: The re-specified one, if one is given.
        has_tuner: Whether tuner.pkl can be used.
        search: What `tune.run` is given in its place: the named searcher, and what goes with it.
    """

    trainable: Any
    param_space: dict[str, Any] | None
    has_tuner: bool
    search: dict[str, Any] = field(default_factory=dict)


def load(store: ObjectStore | None, request: RunnerRequest) -> Loaded:
    """Load what the user gave, and refuse what does not fit the experiment. Starts no Ray.

    Raises:
        InvalidInputError: Before anything was started.
    """
    trainable, param_space = _load_given(store, request)
    tuner = _load_tuner(store) if store is not None and not request.ignore_tuner else None
    if tuner is not None and param_space is not None:
        _check_param_space(param_space, tuner.get("__flattened_param_space_keys"))
    search: dict[str, Any] = {}
    if request.search_alg is not None and tuner is None:
        search = load_search_alg(request.search_alg)
        if store is not None:
            from airflow_tune_restore.runner.tune import saved_searcher

            search = saved_searcher.fit(store, search, request.search_alg)
    return Loaded(
        trainable=trainable,
        param_space=param_space,
        has_tuner=tuner is not None,
        search=search,
    )


def check(store: ObjectStore | None, request: RunnerRequest) -> None:
    """Refuse what `load` would refuse, as far as that shows without loading anything from storage.

    What the user gave is imported; pickles of the experiment are read symbolically. So what only loading
    tells is told by the run: a class that is gone from a module that is there, content that raises, a
    searcher that does not take the saved state, and all of a pickle beyond the limits of `symbolic`.

    Raises:
        InvalidInputError: If something does not fit.
    """
    _, param_space = _load_given(store, request)
    if store is None:
        return
    _check_writable(store)
    is_lost = True
    if not request.ignore_tuner:
        try:
            body = store.get(layout.TUNER_FILE, max_bytes=pickle_reader.MAX_BYTES)
            tuner, modules = pickle_reader.read_with_imports(body)
        except (KeyNotFoundError, pickle_reader.DamagedPickleError):
            pass
        except (TooLargeError, pickle_reader.SymbolicError):
            is_lost = False
        else:
            if (missing := next(filter(_is_missing, sorted(modules)), None)) is not None:
                raise _unloadable(store, f"there is no module {missing[:60]!r}")
            is_lost = not isinstance(tuner, pickle_reader.Mapping)
            if param_space is not None and not is_lost:
                _check_param_space(param_space, _recorded_keys(tuner))
    if request.search_alg is not None and is_lost:
        from airflow_tune_restore.runner.tune import saved_searcher

        saved_searcher.check(store, load_search_alg(request.search_alg), request.search_alg)


def _load_given(store: ObjectStore | None, request: RunnerRequest) -> tuple[Any, Any]:
    """Load trainable and param_space, which the user gave, and compare the trainable's name."""
    private_api.check()
    trainable = load_trainable(request.trainable, request.imports)
    _check_trainable_name(store, trainable, request)
    param_space = load_param_space(request.param_space) if request.param_space else None
    named = (request.trainable, request.search_alg, request.param_space, *request.imports)
    main_module.stand_in([name for name in named if name])
    return trainable, param_space


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
        value = _call(value, f"param_space {name}")
    if not isinstance(value, dict) and not hasattr(value, "to_dict"):
        raise InvalidInputError(f"param_space {name} is a {type(value).__name__}, not a dict.")
    return value  # type: ignore[no-any-return]


def load_search_alg(name: str) -> dict[str, Any]:
    """Load a searcher: itself, a function without arguments that makes one, or a Tuner or TuneConfig.

    Returns:
        Arguments of `tune.run`: `search_alg`, and of a TuneConfig its metric, mode and scheduler. How
        many samples there are, and how many at a time, stands in the saved state.

    Raises:
        InvalidInputError: If it cannot be loaded, or is none.
    """
    from ray.tune import TuneConfig, Tuner
    from ray.tune.impl import tuner_internal
    from ray.tune.search import SearchAlgorithm, Searcher, create_searcher

    kinds = (Searcher, SearchAlgorithm, TuneConfig, Tuner)
    with private_api.replaced(tuner_internal, "StorageContext", _Nowhere):
        value = _resolve(name, "search_alg")
        if callable(value) and not isinstance(value, kinds):
            value = _call(value, f"search_alg {name}")
    given: dict[str, Any] = {}
    config = value._local_tuner._tune_config if isinstance(value, Tuner) else value
    if isinstance(config, TuneConfig):
        given = {"metric": config.metric, "mode": config.mode, "scheduler": config.scheduler}
        config = config.search_alg
        if isinstance(config, str):
            config = create_searcher(config)
    if not isinstance(config, (Searcher, SearchAlgorithm)):
        what = f"{type(value).__name__} without a search_alg" if given else type(value).__name__
        raise InvalidInputError(
            f"search_alg {name} is a {what}, not a searcher, a function that makes one, a Tuner or a "
            "TuneConfig."
        )
    return {**{key: item for key, item in given.items() if item is not None}, "search_alg": config}


class _Nowhere:
    """Where the tuner.pkl goes that every new Tuner writes (`TunerInternal.__init__`, 2.60).

    The experiment that it names is the one that is restored.
    """

    def __init__(self, **_where: Any) -> None:
        from pyarrow.fs import _MockFileSystem

        self.storage_filesystem = _MockFileSystem()
        self.experiment_fs_path = "experiment"

    @staticmethod
    def get_experiment_dir_name(_trainable: Any) -> str:
        """Return the name of an experiment that has none."""
        return "experiment"


def _check_trainable_name(
    store: ObjectStore | None, trainable: Any, request: RunnerRequest
) -> None:
    """Compare names as `TunerInternal._validate_trainable` does (ray.tune.impl, 2.60).

    Raises:
        InvalidInputError: If the experiment was made with another trainable.
    """
    from ray.tune.experiment import Experiment

    recorded = request.trainable_name
    actual = Experiment.get_trainable_name(as_trainable(trainable))
    if not recorded or actual == recorded:
        return
    known = f"trainable {request.trainable} is known to Tune as {actual!r}"
    named = _name_in_tuner(store) if store is not None and request.ignore_tuner else None
    if named is None or named == recorded:
        raise InvalidInputError(
            f"{known}, but the experiment was made with {recorded!r}. Give the trainable the experiment "
            "was made with."
        )
    raise InvalidInputError(
        f"{known}, but the trials were run with {recorded!r}; tuner.pkl, which names {named[:60]!r}, "
        "belongs to another run. Give the trainable that the trials were run with, with --ignore-tuner "
        "(ignore_tuner=True) to restore from the state alone."
    )


def _name_in_tuner(store: ObjectStore) -> str | None:
    """Return the trainable that an ignored tuner.pkl names; loading that file may need what is gone."""
    try:
        body = store.get(layout.TUNER_FILE, max_bytes=pickle_reader.MAX_BYTES)
        name = pickle_reader.attribute(pickle_reader.read_pickle(body), "__trainable_name")
    except (KeyNotFoundError, TooLargeError, CannotBeFollowedError, pickle_reader.SymbolicError):
        return None
    return name if isinstance(name, str) and is_printable(name) else None


def _load_tuner(store: ObjectStore) -> dict[str, Any] | None:
    """Load tuner.pkl as Tuner.restore does; None if it is missing or damaged.

    Raises:
        InvalidInputError: If it needs something that is not here: a user's callback, stopper, searcher.
    """
    from ray import cloudpickle

    body = b""
    try:
        body = store.get(layout.TUNER_FILE, max_bytes=MAX_TUNER_BYTES)
        state: dict[str, Any] = cloudpickle.loads(body)
    except (KeyNotFoundError, EOFError, pickle.UnpicklingError):
        return None
    except Exception as error:  # what it holds is the user's, and may raise anything
        if not isinstance(error, ImportError | AttributeError) and _is_damaged(body):
            return None
        raise _unloadable(store, f"{type(error).__name__}: {error}") from error
    return state if isinstance(state, dict) else None


def _unloadable(store: ObjectStore, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"tuner.pkl of {store.uri} cannot be loaded here: {why.rstrip('.')}. Its callbacks, stopper, "
        "searcher and scheduler must be importable where Ray runs, with all that they need. Without "
        "them, --ignore-tuner (ignore_tuner=True) restores from the state alone."
    )


def _is_damaged(body: bytes) -> bool:
    """Whether it is not the pickle's content that raises, but that it is not a whole pickle."""
    try:
        pickle_reader.read_pickle(body)
    except pickle_reader.SymbolicError:
        return True
    return False


def _check_param_space(param_space: Any, recorded: list[Any] | None) -> None:
    """Compare the keys as Ray will (ray.tune.impl.tuner_internal, 2.60)."""
    from ray.tune.impl.tuner_internal import TunerInternal

    flat = param_space.to_dict() if hasattr(param_space, "to_dict") else param_space
    try:
        TunerInternal._validate_param_space_on_restore(None, flat, recorded)
    except ValueError as error:
        raise InvalidInputError(" ".join(str(error).split())) from error


def _check_writable(store: ObjectStore) -> None:
    """Refuse an experiment on a disk that whoever this process runs as may not write to."""
    places = (store.at(place).uri for place in (layout.ROOT, layout.LEASE))
    for place in (store.uri, *places):
        if Path(place).is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise InvalidInputError(
                f"uid {os.geteuid()}, as which the runner runs, cannot write to {place}. "
                f"Run: chown -R {os.geteuid()} {shlex.quote(store.uri)}"
            )


def _recorded_keys(tuner: Any) -> list[Any] | None:
    """Return the flat keys in tuner.pkl; None where there are none, or keys that are no texts."""
    keys = pickle_reader.attribute(tuner, "__flattened_param_space_keys")
    is_told = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    return keys if is_told else None


def _is_missing(module: str) -> bool:
    """Whether a module cannot be imported here; imports nothing to find out.

    What a package makes only when it is imported is given the benefit of the doubt.
    """
    path: Sequence[str] | None = None
    parts = module.split(".")
    for depth, part in enumerate(parts, 1):
        name = ".".join(parts[:depth])
        if name in sys.modules:
            path = getattr(sys.modules[name], "__path__", None)
        elif not part.isidentifier():
            return True
        else:
            finders = (finder.find_spec(name, path) for finder in sys.meta_path)
            if (spec := next(filter(None, finders), None)) is None:
                return True
            path = spec.submodule_search_locations
        if not isinstance(path, list):  # no package, or a namespace, which asks for its parent
            break
    return False


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


def _call(make: Any, what: str) -> Any:
    try:
        return make()
    except Exception as error:  # the user's function may raise anything
        raise InvalidInputError(
            f"{what}: calling it failed with {type(error).__name__}: {error}"
        ) from error


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
