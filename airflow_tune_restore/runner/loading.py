"""Loading trainable, param_space and searcher, with the checks that Ray makes."""

import importlib
import pickle
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    InvalidInputError,
    KeyNotFoundError,
    TooLargeError,
    TrainableMisfitError,
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


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs of the user that are the same for every experiment.

    Args:
        text: The trainable as the user wrote it.
        name: Its name in Tune.
    """

    text: str
    trainable: Any
    name: str
    param_space: Any = None


def load(store: ObjectStore | None, request: RunnerRequest) -> Loaded:
    """Load the inputs of the user, and check that they fit (InvalidInputError). Ray is not started."""
    given = load_given(
        request.trainable,
        param_space=request.param_space,
        imports=request.imports,
        searchers=[request.search_alg],
    )
    check_name(store, given, request.trainable_name, ignore_tuner=request.ignore_tuner)
    tuner = _load_tuner(store) if store is not None and not request.ignore_tuner else None
    if tuner is not None and given.param_space is not None:
        check_param_space(given.param_space, tuner.get("__flattened_param_space_keys"))
    search: dict[str, Any] = {}
    if request.search_alg is not None and tuner is None:
        search = load_search_alg(request.search_alg)
        if store is not None:
            from airflow_tune_restore.runner.tune import saved_searcher

            search = saved_searcher.fit(store, search, request.search_alg)
    return Loaded(
        trainable=given.trainable,
        param_space=given.param_space,
        has_tuner=tuner is not None,
        search=search,
    )


def load_given(
    trainable: str,
    *,
    param_space: str | None = None,
    imports: Sequence[str] = (),
    searchers: Sequence[str | None] = (),
    show_stage: Callable[[str], object] = lambda _: None,
) -> Given:
    """Load the trainable and the param_space (InvalidInputError if they cannot be used).

    Args:
        trainable: `package.module:attribute`, or a name registered with Tune.
        param_space: `package.module:attribute`, or None.
        imports: Modules to import first.
        searchers: What the user named as searchers; they are not loaded here.
        show_stage: Gets each step in words, before it begins.
    """
    from ray.tune.experiment import Experiment

    private_api.check()
    loaded = load_trainable(trainable, imports, show_stage)
    space = None
    if param_space:
        show_stage(f"loading param_space {param_space}")
        space = load_param_space(param_space)
    named = (trainable, *searchers, param_space, *imports)
    main_module.stand_in([name for name in named if name])
    name = Experiment.get_trainable_name(as_trainable(loaded))
    return Given(text=trainable, trainable=loaded, name=name, param_space=space)


def load_trainable(
    name: str, imports: Sequence[str] = (), show_stage: Callable[[str], object] = lambda _: None
) -> Any:
    """Load a trainable: `package.module:attribute`, or a name registered with Tune.

    The modules `imports` are imported first; they may register trainables. If it cannot be loaded, or
    Tune cannot train it, this is an InvalidInputError. `show_stage` is as in `load_given`.
    """
    for module in imports:
        show_stage(f"importing {module}")
        _import(module, f"import {module}")
    if ":" not in name:
        return _registered(name)
    show_stage(f"importing {name.partition(':')[0]}")
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


def check_name(
    store: ObjectStore | None, given: Given, recorded: str, *, ignore_tuner: bool
) -> None:
    """Compare names as `TunerInternal._validate_trainable` does (ray.tune.impl, 2.60).

    Raises:
        TrainableMisfitError: If the experiment at the root of the store recorded another one.
    """
    if not recorded or given.name == recorded:
        return
    known = f"trainable {given.text} has the name {given.name!r} in Tune"
    named = _name_in_tuner(store) if store is not None and ignore_tuner else None
    if named is None or named == recorded:
        raise TrainableMisfitError(
            f"{known}, but the experiment was made with {recorded!r}. Give the trainable the experiment "
            "was made with."
        )
    raise TrainableMisfitError(
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
        raise unloadable(store, f"{type(error).__name__}: {error}") from error
    return state if isinstance(state, dict) else None


def unloadable(store: ObjectStore, why: str) -> InvalidInputError:
    """Return the error of a tuner.pkl that needs something that is not here."""
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


def check_param_space(param_space: Any, recorded: list[Any] | None) -> None:
    """Compare the keys as Ray will (ray.tune.impl.tuner_internal, 2.60).

    Raises:
        InvalidInputError: If they differ.
    """
    from ray.tune.impl.tuner_internal import TunerInternal

    flat = param_space.to_dict() if hasattr(param_space, "to_dict") else param_space
    try:
        TunerInternal._validate_param_space_on_restore(None, flat, recorded)
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
