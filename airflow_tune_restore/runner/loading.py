"""Loading the inputs of a run, with the checks that Ray makes, and those that it lacks."""

import contextlib
import logging
import pickle
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
from airflow_tune_restore.protocol.check import ExperimentToCheck
from airflow_tune_restore.protocol.planned import read_planned
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import evidence
from airflow_tune_restore.runner.given import Given, load_given, load_search_alg
from airflow_tune_restore.storage.base import ObjectStore

logger = logging.getLogger(__name__)

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
    given = load_given(
        request.trainable,
        param_space=request.param_space,
        imports=request.imports,
        searchers=[request.search_alg],
    )
    check_name(store, given, request.trainable_name, ignore_tuner=request.ignore_tuner)
    if store is not None:
        _, warning = evidence.match(store, given, _experiment_of(store, request))
        if warning:
            logger.warning("%s", warning)
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


def _experiment_of(store: ObjectStore, request: RunnerRequest) -> ExperimentToCheck:
    """Return the experiment of an attempt, with the state of all its trials.

    A missing plan is not evidence. A run that needs it reports that.
    """
    state = request.state
    if not state:  # of an older version, or of an experiment that never had one
        with contextlib.suppress(KeyNotFoundError):
            state = read_planned(store, request.restore_id).base.name
    return ExperimentToCheck(
        experiment=request.experiment,
        trainable_name=request.trainable_name,
        state=state,
        ignore_tuner=request.ignore_tuner,
        trust_name=request.trust_name,
    )


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
