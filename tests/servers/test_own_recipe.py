"""The five lines of docs/recipes.md on a real S3 server, which Ray's own client writes to."""

import uuid

from airflow_tune_restore.restore.recipe import Recipe
from airflow_tune_restore.restore.recipes import read_recipe
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.own_recipe import write_own_recipe


def test_a_sweep_writes_its_recipe_to_an_object_store(s3):
    place = f"{s3.url}/{uuid.uuid4().hex}"
    write_own_recipe(place, "sweep")
    store = open_store(f"{place}/sweep")
    assert read_recipe(store) == Recipe(trainable="team_a.training:train", resume_errored=True)
    assert [entry.name for entry in store.list_dir()] == [".tune_restore"]
