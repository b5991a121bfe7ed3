"""Whether there is room for a trial: on the nodes there are, were they all idle.

A cluster that is busy has room, and the trial waits for it as in Ray. One that lacks a node that is large
enough may get one from its autoscaler; so that is waited for, too, but not in silence and not for ever.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.protocol.resources import describe, describe_bundles

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Node = Mapping[str, float]
"""What a node has in all, by Ray's names."""

PATIENCE = "TUNE_RESTORE_ROOM_SECONDS"
"""Environment variable: how long a trial that no node can hold waits for a larger node."""

PATIENCE_SECONDS = 900.0
LOOK_SECONDS = 5.0
WARN_SECONDS = 60.0

logger = logging.getLogger(__name__)


def nodes() -> list[Node]:
    """Return the nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def has_room(asked: "PlacementGroupFactory", nodes: Sequence[Node]) -> bool:
    """Whether these nodes might hold what is asked for, were they idle.

    False is certain, True is not: bundles of different sizes are only counted one size at a time, and
    summed up.
    """
    bundles = _bundles(asked)
    spread = asked.strategy == "STRICT_SPREAD"
    for bundle in bundles:
        fitting = (how_often(bundle, node) for node in nodes)
        if sum(min(1, n) if spread else n for n in fitting) < bundles.count(bundle):
            return False
    total, there = _sum(bundles), _sum(nodes)
    return all(amount <= there.get(name, 0.0) + 1e-6 for name, amount in total.items())


def how_often(bundle: Mapping[str, float], node: Node) -> int:
    """Return how many of such bundles a node holds."""
    return min(
        (int(node.get(name, 0.0) / amount + 1e-6) for name, amount in bundle.items() if amount),
        default=1,
    )


def _explain(
    trial_id: str, asked: "PlacementGroupFactory", nodes: Sequence[Node], where: str
) -> str:
    """Describe what the trial asks for, and what the node has that comes nearest to it."""
    wanted = _sum(_bundles(asked))
    nearest = max(nodes, key=lambda node: _share(wanted, node))
    has = describe({name: nearest.get(name, 0.0) for name in wanted})
    which = f"The largest of its {len(nodes)} nodes" if len(nodes) > 1 else "It"
    return (
        f"Trial {trial_id} asks for {describe_bundles(asked.bundles, asked.strategy)}, and {where}, even "
        f"if idle, cannot hold that. {which} has {has}."
    )


class RoomWatch:
    """Looks after trials that wait and that no node can hold.

    Args:
        patience_seconds: How long such a trial waits for a larger node.
        where: What it runs on, for people.
        monotonic: The clock.
    """

    def __init__(
        self, patience_seconds: float, where: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience_seconds = patience_seconds
        self._where = where
        self._monotonic = monotonic
        self._next_look = -math.inf
        self._since: dict[str, float] = {}
        self._warned: dict[str, float] = {}

    @classmethod
    def of(cls, request: RunnerRequest, monotonic: Callable[[], float] = time.monotonic) -> Self:
        """Make the watch of an attempt. A private Ray gets no other node: nothing is waited for.

        Raises:
            InvalidInputError: If the environment variable is not a number.
        """
        if request.address is None:
            return cls(0.0, "the private Ray of this machine", monotonic)
        given = os.environ.get(PATIENCE) or PATIENCE_SECONDS
        try:
            return cls(max(1.0, float(given)), "the cluster", monotonic)
        except ValueError:
            raise InvalidInputError(
                f"{PATIENCE} is {given!r}, not a number of seconds. Set it to a number, such as 900."
            ) from None

    def look(
        self,
        waiting: Callable[[], Mapping[str, "PlacementGroupFactory"]],
        nodes: Callable[[], Sequence[Node]] = nodes,
    ) -> dict[str, str]:
        """Warn of waiting trials without room; return those that have waited for too long, and why.

        Looks every `LOOK_SECONDS`, however often it is called.
        """
        now = self._monotonic()
        if now < self._next_look:
            return {}
        self._next_look = now + LOOK_SECONDS
        asked = waiting()
        there = nodes() if asked else []
        lost = [i for i, factory in asked.items() if there and not has_room(factory, there)]
        self._since = {trial_id: self._since.get(trial_id, now) for trial_id in lost}
        given_up = {}
        for trial_id in lost:
            waited = now - self._since[trial_id]
            why = _explain(trial_id, asked[trial_id], there, self._where)
            if waited >= self._patience_seconds:
                given_up[trial_id] = f"{why} {self._advice(waited)}"
            elif now - self._warned.get(trial_id, -math.inf) >= WARN_SECONDS:
                self._warned[trial_id] = now
                left = self._patience_seconds - waited
                logger.warning("%s It waits for a larger node, %.0f s more at most.", why, left)
        return given_up

    def _advice(self, waited: float) -> str:
        less = "Ask for less in the trainable (tune.with_resources)"
        if not self._patience_seconds:
            return f"{less}, or restore it where there is more: launcher='ray' or launcher='kubernetes'."
        return (
            f"It has waited {waited:.0f} s. {less}, or add a larger node; then run the task again."
        )


def _bundles(asked: "PlacementGroupFactory") -> list[dict[str, float]]:
    """Return what is to be placed, each on one node."""
    return [_sum(asked.bundles)] if asked.strategy == "STRICT_PACK" else asked.bundles


def _sum(all_resources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for resources in all_resources:
        for name, amount in resources.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _share(wanted: Mapping[str, float], node: Node) -> float:
    """Return how much of what is wanted a node has, of each resource at most all."""
    return sum(min(1.0, node.get(name, 0.0) / amount) for name, amount in wanted.items())
