"""Checks before anything is leased whether a trainable fits experiments. One process checks many.

Inputs of the user are imported, but pickles of an experiment are only read symbolically. Some errors
therefore show only in the run: a missing class in an existing module, content that raises, a searcher
that refuses the saved state, and a pickle beyond the limits of `pickle_reader`.
"""

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    TooLargeError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout, pickle_reader
from airflow_tune_restore.protocol.check import (
    CheckAnswer,
    ExperimentToCheck,
    MatchedBy,
    Problem,
    problem_of,
)
from airflow_tune_restore.runner import evidence, modules
from airflow_tune_restore.runner.given import Given, load_search_alg
from airflow_tune_restore.runner.loading import check_name, check_param_space, unloadable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import StoreClients

logger = logging.getLogger(__name__)


def answers(
    given: Given, experiments: Sequence[ExperimentToCheck], show_stage: Callable[[str], object]
) -> Iterator[CheckAnswer]:
    """Yield the answer for each experiment. An error of one does not stop the others.

    `show_stage` is as in `loading.load_given`.
    """
    stores = StoreClients()
    for number, experiment in enumerate(experiments, 1):
        show_stage(f"checking experiment {number} of {len(experiments)}, {experiment.experiment}")
        try:
            matched_by, warning = check(stores.open(experiment.experiment), given, experiment)
        except TuneRestoreError as error:
            problem, message = problem_of(error), str(error)
        except Exception as error:
            logger.exception("%s: unexpected error", experiment.experiment)
            problem, message = Problem.FAILED, f"{type(error).__name__}: {error}"
        else:
            yield CheckAnswer(
                experiment=experiment.experiment, matched_by=matched_by, message=warning
            )
            continue
        yield CheckAnswer(experiment=experiment.experiment, problem=problem, message=message)


def check(store: ObjectStore, given: Given, experiment: ExperimentToCheck) -> tuple[MatchedBy, str]:
    """Make the checks of `loading.load` that need no unpickling; raises as it does.

    Returns what `evidence.match` does.
    """
    check_name(store, given, experiment.trainable_name, ignore_tuner=experiment.ignore_tuner)
    matched = evidence.match(store, given, experiment)
    _check_writable(store)
    is_lost = True
    if not experiment.ignore_tuner:
        try:
            body = store.get(layout.TUNER_FILE, max_bytes=pickle_reader.MAX_BYTES)
            tuner, imports = pickle_reader.read_with_imports(body)
        except (KeyNotFoundError, pickle_reader.DamagedPickleError):
            pass
        except (TooLargeError, pickle_reader.SymbolicError):
            is_lost = False
        else:
            needed = sorted({module for module, _ in imports})
            if (missing := next(filter(modules.is_missing, needed), None)) is not None:
                raise unloadable(store, f"module {missing[:60]!r} does not exist")
            is_lost = not isinstance(tuner, pickle_reader.Mapping)
            if given.param_space is not None and not is_lost:
                check_param_space(given.param_space, _recorded_keys(tuner))
    if experiment.search_alg is not None and is_lost:
        from airflow_tune_restore.runner.tune import saved_searcher

        search = load_search_alg(experiment.search_alg)
        saved_searcher.check(store, search, experiment.search_alg)
    return matched


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
