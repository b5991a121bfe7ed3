"""The five lines of docs/recipes.md, as a sweep would run them."""

import json
import re

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.recipe import Recipe
from airflow_tune_restore.restore.recipes import Recipes, read_recipe
from airflow_tune_restore.storage.local import LocalStore
from tests.support import ROOT
from tests.support.experiments.built import make_experiment, make_row
from tests.support.experiments.own_recipe import LINES, PAGE, write_own_recipe

WRITTEN = Recipe(trainable="team_a.training:train", resume_errored=True)


@pytest.mark.parametrize("exists", [True, False])
def test_a_sweep_writes_its_recipe_in_five_lines(tmp_path, exists):
    if exists:
        make_experiment(tmp_path / "sweep", [make_row()])
    write_own_recipe(str(tmp_path), "sweep")
    store = LocalStore(tmp_path / "sweep")
    assert read_recipe(store) == WRITTEN
    assert Recipes.parse(None, recipes=["team_a.*"]).choose(store, "train") == WRITTEN
    write_own_recipe(str(tmp_path), "sweep")  # a sweep that is started again
    assert read_recipe(store) == WRITTEN


def test_they_are_five_and_need_nothing_of_this_package():
    (lines,) = LINES
    assert len(list(filter(None, lines.splitlines()))) == 5
    assert "airflow_tune_restore" not in lines
    assert layout.RECIPE in lines


def test_the_page_has_every_field():
    """The table, and what is published as JSON Schema."""
    fields = PAGE.read_text().partition("## Fields")[2].partition("\n## ")[0]
    named = {
        name
        for line in fields.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
    }
    assert named == set(Recipe.__struct_fields__)
    schema = json.loads((ROOT / "airflow_tune_restore" / "recipe.schema.json").read_text())
    assert named == schema["$defs"]["Recipe"]["properties"].keys()
