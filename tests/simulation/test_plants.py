"""Each planted mistake is found: the simulation can fail."""

import itertools
import re

import pytest

from tests.simulation.campaign import simulating
from tests.simulation.planting import find
from tests.simulation.plants import PLANTS
from tests.support import ROOT

MOST_NIGHTS = 500
"""From the world in the table on: a change of the code may move the mistake to a world nearby."""

TABLE = re.compile(
    r"^\| (?P<name>[^|]+) \| (?P<what>[^|]+) \| (?P<breaks>I\d|EndlessError) \| (?P<seed>\d+) \|",
    re.M,
)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_is_found(name):
    """`find` also simulates the same world with the healthy code, which must break no invariant."""
    plant = PLANTS[name]
    with simulating():
        found = find(plant, itertools.count(plant.seed), MOST_NIGHTS)
    assert found is not None, (
        f"{name}: {plant.what} It was not found from world {plant.seed} on. Put the world that "
        "`python -m tests.simulation --plants` prints into tests/simulation/plants.py."
    )


def test_the_page_has_the_plants_and_their_worlds():
    rows = TABLE.finditer((ROOT / "docs" / "reliability.md").read_text())
    shown = {row["name"]: (row["what"], row["breaks"], int(row["seed"])) for row in rows}
    assert shown == {
        plant.name: (plant.what, plant.breaks, plant.seed) for plant in PLANTS.values()
    }


def test_the_names_and_sentences_of_plants_differ():
    assert len({plant.what for plant in PLANTS.values()}) == len(PLANTS)
    assert all(plant.what.endswith(".") for plant in PLANTS.values())


def test_the_nights_on_the_page_add_up():
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page.partition("### Result of the simulation")[2].partition("\n* ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    nights = sum(int(row[3].replace(",", "")) for row in rows[2:])
    assert page.count(f"{nights:,} nights") == 2  # in the section, and at the top of the page
