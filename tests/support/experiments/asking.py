"""The trainable of the failed experiments, which asks for other resources than it did when they failed.

Each has the recorded name, as somebody's code has that was mended since.
"""

import time
from typing import Any

from ray import tune  # noqa: TID253  only runners and Ray's workers import this

from tests import trainables


def _asking(resources: Any) -> Any:
    def counting(config: dict) -> None:
        trainables.counting(config)

    return tune.with_resources(counting, resources)


three_cpus = _asking({"cpu": 3})
three_bundles = _asking(
    tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 1, "special": 0.5}, {"GPU": 1}])
)
half_a_gigabyte = _asking({"cpu": 1, "memory": 512 * 1024**2})
a_petabyte = _asking({"cpu": 1, "memory": 2**50})
objects_within_it = _asking({"cpu": 1, "object_store_memory": 50 * 1024**2})
objects_beside_it = _asking(
    tune.PlacementGroupFactory([{"CPU": 1}, {"object_store_memory": 300 * 1024**2}])
)
a_petabyte_of_objects = _asking(
    tune.PlacementGroupFactory([{"CPU": 1}, {"object_store_memory": 2**50}])
)
two_nodes = _asking(tune.PlacementGroupFactory([{"CPU": 1}] * 2, strategy="STRICT_SPREAD"))
a_hundred_cpus = _asking({"cpu": 100})
sparse_asks_for_a_hundred = _asking(
    lambda config: {"cpu": 100 if config["role"] == "fails sparsely" else 1}
)
sparse_asks_for_two_nodes = _asking(
    lambda config: tune.PlacementGroupFactory(
        [{"CPU": 1}] * 2,
        strategy="STRICT_SPREAD" if config["role"] == "fails sparsely" else "PACK",
    )
)
more_each_time = _asking(lambda _config: {"cpu": time.monotonic() // 1})
by_its_config = _asking(lambda config: {"cpu": config["of_another_experiment"]})


class Counter(trainables.Counter):
    """A class that asks by itself."""

    @classmethod
    def default_resource_request(cls, config: dict) -> Any:
        return tune.PlacementGroupFactory([{"CPU": 2}, {"CPU": 1}])
