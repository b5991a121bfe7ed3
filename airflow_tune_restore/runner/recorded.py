"""The records of an experiment about its trainable, beside the name: imports of pickles, parameters.

Pickles are read symbolically. A file that cannot be read is not evidence: the run reports it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    TooLargeError,
)
from airflow_tune_restore.protocol import bounded_json, layout, pickle_reader
from airflow_tune_restore.protocol.check import ExperimentToCheck
from airflow_tune_restore.storage.base import ObjectStore

_MOST_TRIALS = 1000
"""Trials of one experiment that are read: all have the parameters of one param_space."""

_MOST_PICKLES = 100
_MOST_DEPTH = 20
_MOST_VALUES = 10_000
"""Limits for the pickles in configs."""

_TRIALS = re.compile(r'"trial_data"\s*:\s*\[\s*')
_BETWEEN = re.compile(r"[\s,]*")

_FIELDS = ("trial_id", "config", "evaluated_params")
"""Searchers such as HyperOpt also record the constants of the space as evaluated."""

_COMPUTED = '"__fn_ph"'
"""The token for a function in the param_space of a row (ray.tune.impl.placeholder, 2.60)."""

_PICKLED = "CLOUDPICKLE_FALLBACK"
"""The type of a value that JSON cannot hold (ray.tune.utils.serialization, 2.60)."""


@dataclass(frozen=True, slots=True)
class Import:
    """A name that a pickle imports, and where that pickle is."""

    place: str
    module: str
    name: str


@dataclass(slots=True)
class Recorded:
    """The records of one experiment.

    Args:
        imports: Of its pickles.
        keys: The config keys of its trials.
        searched: The config keys whose values were chosen, and differ between trials. A value that is
            the same in all trials may be a label that no code reads.
    """

    imports: list[Import] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    searched: set[str] = field(default_factory=set)


def read_recorded(store: ObjectStore, experiment: ExperimentToCheck) -> Recorded:
    """Read the records of an experiment about the trainable of its trials.

    `tuner.pkl` and the state of the searcher count unless they are ignored.
    """
    recorded = Recorded()
    if not experiment.ignore_tuner:
        for name in (layout.TUNER_FILE, *_searcher_states(store)):
            body = _read(store, name, pickle_reader.MAX_BYTES)
            recorded.imports += _imports(name, body)
    pickles = _MOST_PICKLES
    first: dict[str, str] = {}
    for trial_id, config, chosen in _trials(store, experiment):
        recorded.keys |= set(config)
        for key, value in chosen.items():
            if first.setdefault(key, value) != value:
                recorded.searched.add(key)
        for body in _pickles(config):
            if pickles > 0:
                pickles -= 1
                recorded.imports += _imports(f"the config of trial {trial_id}", body)
    return recorded


def _searcher_states(store: ObjectStore) -> list[str]:
    """Return the files of the newest session."""
    names = [
        entry.name
        for entry in store.list_dir()
        if not entry.is_dir and layout.is_searcher_state(entry.name)
    ]
    newest = max((layout.session_of(name) or "" for name in names), default="")
    return sorted(name for name in names if layout.session_of(name) == newest)[:_MOST_PICKLES]


def _read(store: ObjectStore, key: str, max_bytes: int) -> bytes:
    try:
        return store.get(key, max_bytes=max_bytes)
    except (KeyNotFoundError, TooLargeError, CannotBeFollowedError):
        return b""


def _imports(place: str, body: bytes) -> list[Import]:
    try:
        _, names = pickle_reader.read_with_imports(body)
    except pickle_reader.SymbolicError:
        return []
    return [Import(place, module, name) for module, name in sorted(names)]


def _trials(
    store: ObjectStore, experiment: ExperimentToCheck
) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Yield id, config and chosen values of each trial that was run with the recorded trainable."""
    if not experiment.state:
        return
    for row in _rows(_read_start(store, experiment.state)):
        try:
            trial = bounded_json.load(row)
            is_of_trainable = trial["trainable_name"] == experiment.trainable_name
            trial_id, config, evaluated = (trial[name] for name in _FIELDS)
            # a function (`tune.sample_from`) may read keys that the code does not
            is_known = _COMPUTED not in row and isinstance(evaluated, dict)
            chosen = _chosen(config, evaluated) if is_known else {}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if is_of_trainable and isinstance(trial_id, str) and isinstance(config, dict):
            yield trial_id, config, chosen


def _chosen(config: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, str]:
    """Return the top-level config keys that the searcher or a grid has chosen, with values as text."""
    names = {name if name in config else name.partition("/")[0] for name in evaluated}
    return {name: repr(config[name]) for name in names if name in config}


def _read_start(store: ObjectStore, key: str) -> str:
    """Read the first trials of a state, which may hold ten thousand."""
    body = b""
    try:
        for piece in store.stream(key, max_bytes=layout.MAX_STATE_BYTES):
            body += piece
            if len(body) > bounded_json.MAX_DOCUMENT_BYTES:
                break
    except (KeyNotFoundError, TooLargeError, CannotBeFollowedError):
        return ""
    return body[: bounded_json.MAX_DOCUMENT_BYTES].decode(errors="replace")


def _rows(text: str) -> Iterator[str]:
    """Yield the rows in a state, or in its start."""
    start = _TRIALS.search(text)
    decode = json.JSONDecoder().raw_decode
    try:
        bounded_json.check_values(text)
        position = start.end() if start is not None else len(text)
        for _ in range(_MOST_TRIALS):
            pair, end = decode(text, position)
            yield pair[0]
            between = _BETWEEN.match(text, end)
            position = between.end() if between is not None else end
    except (ValueError, TypeError, LookupError, RecursionError):
        return  # the end, or not a state


def _pickles(config: dict[str, Any]) -> Iterator[bytes]:
    """Yield the pickles in a config."""
    level: list[Any] = [config]
    for _ in range(_MOST_DEPTH):
        below: list[Any] = []
        for value in level[:_MOST_VALUES]:
            if isinstance(value, dict) and value.get("_type") == _PICKLED:
                try:
                    yield bytes.fromhex(value["value"])
                except (ValueError, KeyError, TypeError):
                    continue
            elif isinstance(value, dict | list):
                items: Iterable[Any] = value.values() if isinstance(value, dict) else value
                below += [item for item in items if isinstance(item, dict | list)]
        level = below
