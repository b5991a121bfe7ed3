"""Makes a failing script smaller while it fails in the same way.

First everything that can be left out is left out, one by one; then values become simpler. Both are
repeated until nothing changes any more, or the number of simulations is used up.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.simulation.night import Ended, Script, simulate
from tests.simulation.store import StoreKind

_LISTS = ("faults", "storms", "commands", "losses", "jumps", "drivers")
_SIMPLE: dict[str, tuple[Any, ...]] = {
    "sweep": ("one", "small"),
    "kind": (StoreKind.GCS,),
    "max_attempts": (None,),
    "asks": (False,),
    "ttl_seconds": (60.0, 120.0),
    "pace": (0.02, 0.2),
    "tail": (0.0,),
    "start_seconds": (0.0,),
}
"""Values that a field may take instead, the simplest first."""


def kind_of(failure: str) -> str:
    """Return what a failure has in common with others: the invariant, or the name of the exception."""
    found = re.match(r"(InvariantBroken: )?(?P<kind>\w+)", failure)
    return found["kind"] if found else ""


def shrink(ended: Ended, *, most: int = 400) -> Ended:
    """Return the smallest failing world that is found in at most so many simulations."""
    kind = kind_of(ended.failure)
    smallest, tried = ended, {ended.script}
    is_smaller = True
    while is_smaller:
        is_smaller, number = False, 0
        while number < len(simpler := list(_simpler(smallest.script))):
            script = simpler[number]
            number += 1
            if script in tried:
                continue
            if len(tried) > most:
                return smallest
            tried.add(script)
            found = simulate(script)
            if kind_of(found.failure) == kind:
                smallest, is_smaller = found, True
                number -= 1  # what came next has moved up
    return smallest


def _simpler(script: Script) -> Iterator[Script]:
    """Yield the scripts that have one thing less, then those that have one simpler value."""
    for name in _LISTS:
        if len(getattr(script, name)) > 1:
            yield replace(script, **{name: ()})
    if len(script.nights) > 1:
        yield from (replace(script, nights=nights) for nights in _without_one(script.nights))
    for name in _LISTS:
        yield from (replace(script, **{name: rest}) for rest in _without_one(getattr(script, name)))
    for number, night in enumerate(script.nights):
        for rest in _without_one(night.meddlings):
            yield _with(script, "nights", number, replace(night, meddlings=rest))
    for number, ahead in enumerate(script.clocks):
        if ahead:
            clocks = (*script.clocks[:number], 0.0, *script.clocks[number + 1 :])
            yield replace(script, clocks=clocks)
    for name, values in _SIMPLE.items():
        now = getattr(script, name)
        better = values[: values.index(now)] if now in values else values
        yield from (replace(script, **{name: value}) for value in better)
    yield from _rounder(script)


def _rounder(script: Script) -> Iterator[Script]:
    """Yield the scripts in which one time is shorter or rounder."""
    for name, field in (
        ("faults", "seconds"),
        ("storms", "seconds"),
        ("storms", "begins"),
        ("commands", "at"),
        ("losses", "at"),
        ("jumps", "at"),
        ("nights", "starts"),
    ):
        for number, item in enumerate(getattr(script, name)):
            for value in _rounder_values(getattr(item, field)):
                yield _with(script, name, number, replace(item, **{field: value}))
    for number, night in enumerate(script.nights):
        for place, meddling in enumerate(night.meddlings):
            for value in _rounder_values(meddling.seconds):
                changed = replace(meddling, seconds=value)
                meddlings = (*night.meddlings[:place], changed, *night.meddlings[place + 1 :])
                yield _with(script, "nights", number, replace(night, meddlings=meddlings))


def _rounder_values(value: float) -> list[float]:
    """Return simpler values: 0, half of it, and without its fraction."""
    found = [0.0, float(int(value / 2)), float(int(value))]
    return [each for each in dict.fromkeys(found) if each < value]


def _without_one(items: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    return (items[:number] + items[number + 1 :] for number in range(len(items)))


def _with(script: Script, name: str, number: int, item: Any) -> Script:
    items = getattr(script, name)
    return replace(script, **{name: (*items[:number], item, *items[number + 1 :])})
