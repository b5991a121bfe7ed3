"""Whether the present nodes, if idle, have room for a trial.

On a busy cluster the trial waits, as in Ray. If no node is large enough, an autoscaler may add one: the
trial waits for it with warnings, and only for a limited time.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.protocol.resources import describe, describe_bundles

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Node = Mapping[str, float]
"""All resources of a node, by Ray's names."""

PATIENCE = "TUNE_RESTORE_ROOM_SECONDS"
"""Environment variable: seconds that a trial which no node can hold waits for a larger node."""

PATIENCE_SECONDS = 900.0
LOOK_SECONDS = 5.0
WARN_SECONDS = 60.0

logger = logging.getLogger(__name__)


def nodes() -> list[Node]:
    """Return the nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def has_room(asked: "PlacementGroupFactory", nodes: Sequence[Node]) -> bool:
    """Whether these nodes, if idle, may hold the request.

    False is certain, True is not: each size of bundles is counted by itself, and then the sums are
    compared.
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
    """Return how many copies of a bundle a node holds."""
    return min(
        (int(node.get(name, 0.0) / amount + 1e-6) for name, amount in bundle.items() if amount),
        default=1,
    )


def _explain(
    trial_id: str, asked: "PlacementGroupFactory", nodes: Sequence[Node], where: str
) -> str:
    """Describe the request of a trial, and the resources of the node that is nearest to it."""
    wanted = _sum(_bundles(asked))
    nearest = max(nodes, key=lambda node: _share(wanted, node))
    has = describe({name: nearest.get(name, 0.0) for name in wanted})
    which = f"The largest of its {len(nodes)} nodes" if len(nodes) > 1 else "It"
    return (
        f"Trial {trial_id} requests {describe_bundles(asked.bundles, asked.strategy)}, and {where} "
        f"cannot hold that, even if idle. {which} has {has}."
    )


class RoomWatch:
    """Watches for waiting trials that no node can hold.

    Such a trial waits `patience_seconds` for a larger node. `where` is the Ray that it runs on, in words.
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
        """Make the watch of an attempt. A private Ray never gets another node, so the wait is 0 s.

        An environment variable that is not a number is an InvalidInputError.
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
        """Warn about waiting trials without room; return the reason for each that has waited too long.

        Checks at most every `LOOK_SECONDS`.

        Raises:
            RunnerError: If the private Ray has died; its trials would wait for ever.
        """
        now = self._monotonic()
        if now < self._next_look:
            return {}
        self._next_look = now + LOOK_SECONDS
        self.raise_if_ray_died(nodes)
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
                logger.warning("%s It waits for a larger node for at most %.0f s.", why, left)
        return given_up

    def raise_if_ray_died(self, nodes: Callable[[], Sequence[Node]] = nodes) -> None:
        """Raise a RunnerError if a private Ray has no node any more; a cluster may get another one."""
        if not self._patience_seconds and not nodes():
            raise RunnerError("the private Ray of this run has died")

    def _advice(self, waited: float) -> str:
        less = "Request less in the trainable (tune.with_resources)"
        if not self._patience_seconds:
            return (
                f"{less}, or restore on a larger machine: launcher='ray' or launcher='kubernetes'."
            )
        return f"It waited {waited:.0f} s. {less}, or add a larger node; then run the task again."


def _bundles(asked: "PlacementGroupFactory") -> list[dict[str, float]]:
    """Return the bundles, each of which must be on one node."""
    return [_sum(asked.bundles)] if asked.strategy == "STRICT_PACK" else asked.bundles


def _sum(all_resources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for resources in all_resources:
        for name, amount in resources.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _share(wanted: Mapping[str, float], node: Node) -> float:
    """Return a score of how much of the wanted resources a node has; 1 for each that it has in full."""
    return sum(min(1.0, node.get(name, 0.0) / amount) for name, amount in wanted.items())
