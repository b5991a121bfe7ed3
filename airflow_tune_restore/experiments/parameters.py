"""The hyper-parameters in which trials differ, as short texts for tables.

A config is untrusted, and may be large: of each trial a bounded number of values is looked at, and each
value is cut.
"""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import msgspec

from airflow_tune_restore.experiments.raw_row import RawRow, hex_of_pickle, read_hex_pickle
from airflow_tune_restore.experiments.trial import Trial, follow_metric
from airflow_tune_restore.protocol.pickle_reader import Global
from airflow_tune_restore.protocol.printable import printable

MAX_PARAMETERS = 6
"""How many differing parameters are kept in plans, XComs and tables."""

NAME_LENGTH, VALUE_LENGTH = 40, 24

_READ_NAMES = 32
"""Of one config: first those that the search chose, then the others in their order."""

_COMPARED_LENGTH = 100
"""Characters of a value in which two trials must differ to be seen as different."""

_DEEPEST = 8
_LARGEST_OBJECT = 4096
"""Hex digits of a pickled object whose name is looked for: a class or a function is short."""

_LISTS = reprlib.Repr()
_LISTS.maxlist = _LISTS.maxdict = 8
_LISTS.maxlevel = 3
_LISTS.maxstring = _LISTS.maxother = _LISTS.maxlong = VALUE_LENGTH


@dataclass(frozen=True, slots=True)
class Varying:
    """The parameters in which the trials of an experiment differ.

    Args:
        by_trial: Short texts by trial id and name, for at most `MAX_PARAMETERS` names. A trial whose
            config lacks one has no text for it.
        more: How many other parameters differ.
    """

    by_trial: dict[str, dict[str, str]] = field(default_factory=dict)
    more: int = 0


def find_varying(trials: Iterable[Trial]) -> Varying:
    """Compare the configs of trials. Trials whose config cannot be read are left out."""
    found = {trial.trial_id: _parameters_of(trial) for trial in trials}
    known = {trial_id: values for trial_id, values in found.items() if values}
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    differing: set[str] = set()
    for values in known.values():
        for name, text in values.items():
            counts[name] = counts.get(name, 0) + 1
            if first.setdefault(name, text) != text:
                differing.add(name)
    names = [name for name in first if name in differing or counts[name] < len(known)]
    shown = names[:MAX_PARAMETERS]
    return Varying(
        {
            trial_id: {name: cut(values[name], VALUE_LENGTH) for name in shown if name in values}
            for trial_id, values in known.items()
        }
        if shown
        else {},
        len(names) - len(shown),
    )


def read_parameters(row: RawRow) -> dict[str, str]:
    """Return the parameters of one trial by Ray's flat names (`a/b`), as texts; {} if unreadable."""
    config, chosen = row.config()
    # the config is what the trial runs with; PBT changes it, and not the record of the choice
    first = ((name, follow_metric(config, name)) for name in islice(chosen, _READ_NAMES))
    tops = chain((item for item in first if item[1] is not None), config.items())
    found: dict[str, str] = {}
    for name, value in islice(leaves(tops), _READ_NAMES):
        found.setdefault(cut(printable(name), NAME_LENGTH), text_of(value))
    return found


def shown_of(trial: Trial, row: RawRow, metric: str | None, *, is_marked: bool = True) -> Trial:
    """Return a trial without its row, with what tables show of it: its parameters, and a metric."""
    return msgspec.structs.replace(
        trial,
        row=None,
        parameters={} if trial.unusable else read_parameters(row),
        metric=read_metric(row, metric),
        mark=row.mark() if is_marked else 0,
    )


def read_metric(row: RawRow, name: str | None) -> float | None:
    """Return the value of a metric in the last result; None if it has none, or if it is not a number."""
    value = follow_metric(row.last_result(), name) if name else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # an integer in JSON may be larger than any float
        return None


def cut(text: str, most: int) -> str:
    """Shorten a text in its middle: names and paths often differ at their ends."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def bounded_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Bring parameters that were read from a store within the limits of `Varying.by_trial`."""
    return {
        cut(printable(name), NAME_LENGTH): cut(printable(text), VALUE_LENGTH)
        for name, text in islice(parameters.items(), MAX_PARAMETERS)
    }


def _parameters_of(trial: Trial) -> dict[str, str]:
    if trial.parameters is not None:
        return trial.parameters
    return {} if trial.row is None or trial.unusable else read_parameters(trial.row)


def leaves(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Flatten named values as Ray names metrics (`a/b`), one by one: there may be many."""
    return chain.from_iterable(_leaves(name, value, 1) for name, value in values)


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Flatten as Ray names metrics; every dict gives one leaf or more, so that a walk can be bounded."""
    if not isinstance(value, dict) or not value or depth > _DEEPEST or hex_of_pickle(value):
        yield name, value
        return
    for key, child in value.items():
        yield from _leaves(f"{name}/{key[:NAME_LENGTH]}", child, depth + 1)


def text_of(value: Any) -> str:
    """Return a value of a config as a short text on one line; a pickled object by its name."""
    match value:
        case str():
            text = value
        case bool() | None:
            text = str(value)
        case float():
            text = f"{value:.6g}"
        case dict() if hex_of_pickle(value):
            text = _name_of_object(value)
        case _:
            text = _LISTS.repr(value)
    return printable(text, _COMPARED_LENGTH)


def _name_of_object(pickled: dict[str, Any]) -> str:
    """Return the name of a class or function in a config; it is never unpickled."""
    is_short = len(hex_of_pickle(pickled) or "") <= _LARGEST_OBJECT
    found = read_hex_pickle(pickled) if is_short else None
    return found.name if isinstance(found, Global) else "(object)"
