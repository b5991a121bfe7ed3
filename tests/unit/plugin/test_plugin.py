"""The plugin costs other processes nothing, and leads the api-server to the page."""

import importlib
import subprocess
import sys
import tomllib

import pytest

from airflow_tune_restore.plugin.plugin import LazyApp, TuneRestorePlugin
from tests.support import ROOT


@pytest.mark.parametrize("module", ["plugin", "commands"])
def test_other_processes_import_nothing_with_it(module):
    """What each process of Airflow, or each command of its CLI, has by itself is imported before."""
    code = (
        "import sys, airflow.plugins_manager, airflow.cli.cli_config; before = set(sys.modules)\n"
        f"import airflow_tune_restore.plugin.{module} as m\n"
        "m.TuneRestorePlugin() if hasattr(m, 'TuneRestorePlugin') else m.get_commands()\n"
        "print(sorted(set(sys.modules) - before - {'airflow_tune_restore'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()[-1]
    assert found == str(["airflow_tune_restore.plugin", f"airflow_tune_restore.plugin.{module}"])


@pytest.mark.parametrize("path", ["", "/af"])
def test_the_menu_and_the_tabs_lead_to_the_page_below_the_path_of_airflow(monkeypatch, path):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", f"http://host{path}")
    nav, run, task = TuneRestorePlugin().external_views
    assert (nav["name"], nav["category"], nav["destination"]) == (
        "Tune experiments",
        "browse",
        "nav",
    )
    assert nav["href"] == f"{path}/tune_restore/?view=experiments"
    assert run["href"] == f"{path}/tune_restore/?view=dag_run&dag_id={{DAG_ID}}&run_id={{RUN_ID}}"
    assert task["href"] == f"{run['href']}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}"
    assert (run["destination"], task["destination"]) == ("dag_run", "task_instance")
    assert len({view["url_route"] for view in (nav, run, task)}) == 3
    assert nav["icon"] == f"{path}/tune_restore/static/icon.svg"


def test_airflow_can_take_a_view_out_of_the_list():
    plugin = TuneRestorePlugin()
    plugin.external_views.remove(plugin.external_views[0])
    assert len(plugin.external_views) == 2


def test_airflow_finds_it_by_its_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["airflow.plugins"].values()
    module, _, name = target.partition(":")
    assert getattr(importlib.import_module(module), name) is TuneRestorePlugin


def test_the_app_is_made_with_its_first_request(monkeypatch):
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    made = []

    def create_app():
        made.append(1)
        return FastAPI(docs_url="/here")

    monkeypatch.setattr("airflow_tune_restore.plugin.app.create_app", create_app)
    root = FastAPI()
    root.mount("/tune_restore", LazyApp())
    client = TestClient(root)
    assert made == []
    assert [client.get("/tune_restore/here").status_code for _ in range(2)] == [200, 200]
    assert made == [1]
