"""Resource requests of trials, by Ray's names: compared and described. Standard library only."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

OBJECT_STORE_BYTES = 200 * 1024**2
"""Ray's default is 30 % of the machine, which is too much for several runners on one machine."""


def most_of(asked: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the largest amount of each resource."""
    found: dict[str, float] = {}
    for resources in asked:
        for name, amount in resources.items():
            found[name] = max(amount, found.get(name, 0.0))
    return found


def is_enough(given: Mapping[str, float], needed: Mapping[str, float]) -> bool:
    """Whether a pod made for `given` (with whole CPUs and GPUs, at least one CPU) holds `needed`."""
    return all(
        amount <= (given.get(name, 0.0) if name == "memory" else _whole(name, given))
        for name, amount in needed.items()
    )


def describe(resources: Mapping[str, float]) -> str:
    """Return resources as text, such as `CPU 3, memory 8.0 GiB`."""
    words = [f"{name} {_amount(name, amount)}" for name, amount in sorted(resources.items())]
    return ", ".join(words) or "nothing"


def describe_bundles(bundles: Iterable[Mapping[str, float]], strategy: str) -> str:
    """Return a placement group as text, such as `2 bundles of CPU 1 (STRICT_SPREAD)`."""
    counts = Counter(describe(bundle) for bundle in bundles)
    if counts.total() == 1:
        return next(iter(counts))
    parts = [f"{n} bundles of {words}" if n > 1 else words for words, n in counts.items()]
    return f"{' and '.join(parts)} ({strategy})"


def _whole(name: str, given: Mapping[str, float]) -> int:
    return max(math.ceil(given.get(name, 0.0)), 1 if name == "CPU" else 0)


def _amount(name: str, amount: float) -> str:
    return f"{amount / 1024**3:.1f} GiB" if name.endswith("memory") else f"{amount:g}"
