"""Loading what the user names: trainable, param_space and searcher."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.runner import main_module
from airflow_tune_restore.runner.tune import private_api


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
