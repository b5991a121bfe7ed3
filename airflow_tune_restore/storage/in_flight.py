"""Many requests at the same time, about objects that do not depend on each other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

IN_FLIGHT = 32
"""Threads of one step of one experiment. Requests wait for the network, not for the processor."""

_AT_ONCE_SECONDS, _PATIENCE = 0.0005, 10
"""Of one item on average, and how many times that one item alone may take."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def for_each(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return the result of `work` for each item, in the order of the items; raises as `ahead`.

    As long as the answers come at once, as from a disk of this machine, no thread is started.
    """
    left, results, seconds = iter(items), list[_Result](), 0.0
    if isinstance(items, Sequence) and len(items) == 1:
        return [work(items[0])]
    for item in left:
        started = monotonic()
        results.append(work(item))
        seconds += monotonic() - started
        if seconds > _AT_ONCE_SECONDS * (len(results) + _PATIENCE):
            results.extend(ahead(work, left))
    return results


def ahead(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the result of `work` for each item, in the order of the items.

    It works a little ahead, so that few results are in memory, however many items there are. The first
    error is raised; items further on are not begun then.
    """
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        try:
            for item in items:
                if (
                    len(waiting) == 2 * IN_FLIGHT
                ):  # a slow one does not leave the threads without work
                    yield waiting.popleft().result()
                waiting.append(threads.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
