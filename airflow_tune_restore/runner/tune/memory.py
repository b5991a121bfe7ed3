"""More memory for a trial that ran out of it, on a cluster: Ray places it on a node with enough.

The row keeps the trial's own request. Ray computes the request whenever it restores a trial
(Trial.create_placement_group_factory, 2.60); this changes it for one attempt only.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.room import Node, how_often, nodes
from airflow_tune_restore.runner.tune.private_api import replaced

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def more_memory(request: RunnerRequest) -> Iterator[None]:
    """Make trials request the memory of this attempt until the block ends."""
    from ray.tune.experiment import Trial

    wanted = request.resources.get("memory", 0.0)
    compute = Trial.create_placement_group_factory
    if request.address is None or not wanted:
        yield  # a private Ray has the machine's memory in any case
        return

    def compute_with_memory(trial: "Trial") -> None:
        compute(trial)
        trial.placement_group_factory = _with_memory(trial.placement_group_factory, wanted)

    with replaced(Trial, "create_placement_group_factory", compute_with_memory):
        yield


@contextlib.contextmanager
def own_resources(trial: "Trial", request: RunnerRequest) -> Iterator[None]:
    """Set a trial's own resources, which belong into its row, until the block ends."""
    asked = trial.placement_group_factory
    if request.address is None or "memory" not in request.resources:
        yield
        return
    trial.create_placement_group_factory()
    trial.invalidate_json_state()
    try:
        yield
    finally:
        trial.placement_group_factory = asked
        trial.invalidate_json_state()


def _with_memory(own: Any, wanted: float) -> Any:
    """Return the resources with so much memory in total; unchanged if they have it, or no node does."""
    bundles = own.bundles
    has = own.required_resources.get("memory", 0.0)
    grown = [bundle for bundle in bundles if "memory" in bundle] or bundles[:1]
    wanted = min(wanted, _most_memory(grown, nodes()))
    if wanted <= has:
        return own
    if has:
        bundles = [
            {**b, "memory": b["memory"] * wanted / has} if "memory" in b else b for b in bundles
        ]
    else:
        bundles[0]["memory"] = wanted
    logger.info("The trial requests %.1f GiB of memory.", wanted / 1024**3)
    if own.head_bundle_is_empty:
        bundles.insert(0, {})
    return type(own)(bundles, strategy=own.strategy)


def _most_memory(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Node]) -> float:
    """Return the memory of the largest node that holds the other resources of the bundles.

    A trial that requests more than any node has might wait for ever.
    """
    others = [{**bundle, "memory": 0.0} for bundle in bundles]
    return max(
        (node.get("memory", 0.0) for node in nodes if all(how_often(o, node) for o in others)),
        default=0.0,
    )
