"""Loading trainable, param_space and searcher, with the checks that Ray makes."""

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
    """The loaded inputs of a run.

    Args:
        has_tuner: Whether tuner.pkl can be used.
        search: Arguments for `tune.run` in the place of tuner.pkl: the named searcher, and its options.
    """

    trainable: Any
    param_space: dict[str, Any] | None
    has_tuner: bool
    search: dict[str, Any] = field(default_factory=dict)


def load(store: ObjectStore | None, request: RunnerRequest) -> Loaded:
    """Load the inputs of the user, and check that they fit (InvalidInputError). Ray is not started."""
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
        trainable=trainable, param_space=param_space, has_tuner=tuner is not None, search=search
    )


def check(store: ObjectStore | None, request: RunnerRequest) -> None:
    """Make the checks of `load` that need no unpickling; raises as `load` does.

    Inputs of the user are imported, but pickles of the experiment are only read symbolically. Some errors
    therefore show only in the run: a missing class in an existing module, content that raises, a searcher
    that refuses the saved state, and a pickle beyond the limits of `pickle_reader`.
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
                raise _unloadable(store, f"module {missing[:60]!r} does not exist")
            is_lost = not isinstance(tuner, pickle_reader.Mapping)
            if param_space is not None and not is_lost:
                _check_param_space(param_space, _recorded_keys(tuner))
    if request.search_alg is not None and is_lost:
        from airflow_tune_restore.runner.tune import saved_searcher

        saved_searcher.check(store, load_search_alg(request.search_alg), request.search_alg)


def _load_given(store: ObjectStore | None, request: RunnerRequest) -> tuple[Any, Any]:
    private_api.check()
    trainable = load_trainable(request.trainable, request.imports)
    _check_trainable_name(store, trainable, request)
    param_space = load_param_space(request.param_space) if request.param_space else None
    named = (request.trainable, request.search_alg, request.param_space, *request.imports)
    main_module.stand_in([name for name in named if name])
    return trainable, param_space


def load_trainable(name: str, imports: Sequence[str] = ()) -> Any:
    """Load a trainable: `package.module:attribute`, or a name registered with Tune.

    The modules `imports` are imported first; they may register trainables. If it cannot be loaded, or
    Tune cannot train it, this is an InvalidInputError.
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
    """Load a re-specified param_space: a dict, or a function without arguments that returns one.

    Anything else is an InvalidInputError.
    """
    value = _resolve(name, "param_space")
    if callable(value) and not hasattr(value, "to_dict"):
        value = _call(value, f"param_space {name}")
    if not isinstance(value, dict) and not hasattr(value, "to_dict"):
        raise InvalidInputError(f"param_space {name} is a {type(value).__name__}, not a dict.")
    return value  # type: ignore[no-any-return]


def load_search_alg(name: str) -> dict[str, Any]:
    """Load a searcher, a function without arguments that returns one, a Tuner or a TuneConfig.

    Anything else is an InvalidInputError. The result holds arguments of `tune.run`: `search_alg`, and
    metric, mode and scheduler of a TuneConfig. The saved state has the other settings.
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
            f"search_alg {name} is a {what}, not a searcher, a function that returns one, a Tuner or a "
            "TuneConfig."
        )
    return {**{key: item for key, item in given.items() if item is not None}, "search_alg": config}


class _Nowhere:
    """Takes the tuner.pkl that every new Tuner writes (`TunerInternal.__init__`, 2.60).

    Otherwise it would overwrite the one of the restored experiment.
    """

    def __init__(self, **_where: Any) -> None:
        from pyarrow.fs import _MockFileSystem

        self.storage_filesystem = _MockFileSystem()
        self.experiment_fs_path = "experiment"

    @staticmethod
    def get_experiment_dir_name(_trainable: Any) -> str:
        """Return a placeholder."""
        return "experiment"


def _check_trainable_name(
    store: ObjectStore | None, trainable: Any, request: RunnerRequest
) -> None:
    """Compare names as `TunerInternal._validate_trainable` does (ray.tune.impl, 2.60)."""
    from ray.tune.experiment import Experiment

    recorded = request.trainable_name
    actual = Experiment.get_trainable_name(as_trainable(trainable))
    if not recorded or actual == recorded:
        return
    known = f"trainable {request.trainable} has the name {actual!r} in Tune"
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
    """Return the trainable's name in an ignored tuner.pkl, without loading this file."""
    try:
        body = store.get(layout.TUNER_FILE, max_bytes=pickle_reader.MAX_BYTES)
        name = pickle_reader.attribute(pickle_reader.read_pickle(body), "__trainable_name")
    except (KeyNotFoundError, TooLargeError, CannotBeFollowedError, pickle_reader.SymbolicError):
        return None
    return name if isinstance(name, str) and is_printable(name) else None


def _load_tuner(store: ObjectStore) -> dict[str, Any] | None:
    """Load tuner.pkl as Tuner.restore does; None if it is missing or damaged."""
    from ray import cloudpickle

    body = b""
    try:
        body = store.get(layout.TUNER_FILE, max_bytes=MAX_TUNER_BYTES)
        state: dict[str, Any] = cloudpickle.loads(body)
    except (KeyNotFoundError, EOFError, pickle.UnpicklingError):
        return None
    except Exception as error:  # objects of the user may raise anything
        if not isinstance(error, ImportError | AttributeError) and _is_damaged(body):
            return None
        raise _unloadable(store, f"{type(error).__name__}: {error}") from error
    return state if isinstance(state, dict) else None


def _unloadable(store: ObjectStore, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"tuner.pkl of {store.uri} cannot be loaded here: {why.rstrip('.')}. Its callbacks, stopper, "
        "searcher and scheduler, and the modules they need, must be importable where Ray runs. "
        "--ignore-tuner (ignore_tuner=True) restores without them, from the state alone."
    )


def _is_damaged(body: bytes) -> bool:
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
    places = (store.at(place).uri for place in (layout.ROOT, layout.LEASE))
    for place in (store.uri, *places):
        if Path(place).is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise InvalidInputError(
                f"The runner's uid {os.geteuid()} cannot write to {place}. "
                f"Run: chown -R {os.geteuid()} {shlex.quote(store.uri)}"
            )


def _recorded_keys(tuner: Any) -> list[Any] | None:
    keys = pickle_reader.attribute(tuner, "__flattened_param_space_keys")
    is_valid = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    return keys if is_valid else None


def _is_missing(module: str) -> bool:
    """Whether a module cannot be imported here. The check imports nothing.

    Modules that a package creates during its import count as present.
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
        if not isinstance(path, list):
            break  # not a package, or a namespace package, which needs its parent
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
            f"{what}: module {error.name!r} does not exist here. "
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
    """Return the trainable of a trainer; any other value as it is."""
    return value.as_trainable() if _is_trainer(value) else value


def _is_trainer(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "as_trainable")
