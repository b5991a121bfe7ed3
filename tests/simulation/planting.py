"""Plants a mistake in the real code, and searches for a world that shows it.

A plant replaces some text of a function, wherever the function is used. If the function does not have
this text any more, the plant cannot be made: write it anew.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

from tests.simulation.night import count_nights, draw_script, simulate
from tests.simulation.shrink import kind_of

MOST_NIGHTS = 10_000
"""Within so many nights each plant must be found."""


@dataclass(frozen=True)
class Edit:
    """A change of one function: `before`, which its text has once, becomes `after`."""

    of: Callable[..., Any]
    before: str
    after: str = ""

    @contextmanager
    def made(self) -> Iterator[None]:
        """Have it in the code."""
        healthy = self.of.__code__
        self.of.__code__ = self._changed()
        try:
            yield
        finally:
            self.of.__code__ = healthy

    def _changed(self) -> CodeType:
        text = textwrap.dedent(inspect.getsource(self.of))
        if text.count(self.before) != 1:
            raise ValueError(f"{self.of.__qualname__} does not have {self.before!r} once")
        changed: dict[str, Any] = {}
        code = compile(text.replace(self.before, self.after), "<planted>", "exec")
        exec(code, self.of.__globals__, changed)
        found: CodeType = changed[self.of.__name__].__code__
        return found


@dataclass(frozen=True)
class Plant:
    """One mistake.

    Args:
        what: The mistake in one sentence.
        breaks: The invariant that breaks; a world that fails in another way does not show the plant.
        edits: At most one of each function.
        seed: Of the first world of the campaign with seed 0 in which it is found.
    """

    name: str
    what: str
    breaks: str
    edits: tuple[Edit, ...]
    seed: int | None = None

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the mistake in the code."""
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.made())
            yield


@dataclass(frozen=True)
class Found:
    """A world that a plant fails in, and the healthy code does not. `nights` counts up to it."""

    seed: int
    nights: int
    failure: str


def find(plant: Plant, seeds: Iterable[int], most: int = MOST_NIGHTS) -> Found | None:
    """Search for a plant; None if it is not found within so many nights."""
    nights = 0
    for seed in seeds:
        script = draw_script(seed)
        with plant.planted():
            ended = simulate(script)
        nights += count_nights(script)
        if kind_of(ended.failure) == plant.breaks and not simulate(script).failure:
            return Found(seed, nights, ended.failure)
        if nights >= most:
            return None
    return None
