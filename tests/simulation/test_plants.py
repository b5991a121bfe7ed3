"""Each planted mistake is found: the simulation can fail."""

import itertools

import pytest

from tests.simulation.campaign import simulating
from tests.simulation.planting import find
from tests.simulation.plants import PLANTS

FOUND = [name for name, plant in PLANTS.items() if plant.seed is not None]


@pytest.mark.parametrize("name", FOUND)
def test_a_planted_mistake_is_found(name):
    """`find` also simulates the same world with the healthy code, which must break no invariant."""
    plant = PLANTS[name]
    with simulating():
        found = find(plant, itertools.count(plant.seed))
    assert found is not None, f"{name}: {plant.what} It was not found from world {plant.seed} on."


def test_the_names_and_sentences_of_plants_differ():
    assert len({plant.what for plant in PLANTS.values()}) == len(PLANTS)
    assert all(plant.what.endswith(".") for plant in PLANTS.values())
