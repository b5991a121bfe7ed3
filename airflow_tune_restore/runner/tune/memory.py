"""More memory for a trial that ran out of it, on a cluster: Ray places it where that much is free.

The row keeps what the trial asked for by itself. Ray computes that anew whenever it restores a trial
(Trial.create_placement_group_factory, 2.60), and so does this: for this attempt only.
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
    """Let trials ask for the memory of the request, for as long as the block runs."""
    from ray.tune.experiment import Trial

    wanted = request.resources.get("memory", 0.0)
    compute = Trial.create_placement_group_factory
    if request.address is None or not wanted:
        yield  # a private Ray has the machine's memory, whatever is asked for
        return

    def compute_with_memory(trial: "Trial") -> None:
        compute(trial)
        trial.placement_group_factory = _with_memory(trial.placement_group_factory, wanted)

    with replaced(Trial, "create_placement_group_factory", compute_with_memory):
        yield


@contextlib.contextmanager
def own_resources(trial: "Trial", request: RunnerRequest) -> Iterator[None]:
    """Show a trial's own resources, as they belong into its row, for as long as the block runs."""
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
    """Return the resources with that much memory in all; the same if they have it, or none can."""
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
    logger.info("The trial asks for %.1f GiB of memory.", wanted / 1024**3)
    if own.head_bundle_is_empty:
        bundles.insert(0, {})
    return type(own)(bundles, strategy=own.strategy)


def _most_memory(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Node]) -> float:
    """Return the memory of the largest node that has what else the bundles ask for.

    A trial that asks for more than any node has would wait for one that may never come.
    """
    others = [{**bundle, "memory": 0.0} for bundle in bundles]
    return max(
        (node.get("memory", 0.0) for node in nodes if all(how_often(o, node) for o in others)),
        default=0.0,
    )
