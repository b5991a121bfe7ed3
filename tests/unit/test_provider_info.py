"""What Airflow reads of the package."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import airflow
import pytest
from airflow.executors.base_executor import BaseExecutor
from jsonschema import validate

from airflow_tune_restore.provider_info import get_provider_info

ROOT = Path(__file__).parents[2] / "airflow_tune_restore"


def test_it_fits_the_schema():
    schema = json.loads(Path(airflow.__path__[0], "provider_info.schema.json").read_text())
    validate(get_provider_info(), schema)


@pytest.mark.parametrize("room", ["operators", "sensors", "hooks", "triggers"])
def test_every_module_it_names_can_be_imported(room):
    for integration in get_provider_info()[room]:
        for name in integration["python-modules"]:
            importlib.import_module(name)


def test_no_operator_sensor_or_trigger_is_forgotten():
    bases = (
        *("BaseOperator", "AttemptOperator", "RunnerPodOperator"),
        *("PlannedTrialOperator, AttemptOperator", "PlannedTrialOperator, RunnerPodOperator"),
        *(
            "RecipeOperator",
            "PrepareRestoresOperator",
            "ApprovalOperator",
            "CheckedOperator",
            "CheckedOperator, BaseSensorOperator",
            "BaseHook",
        ),
        *("KillableTrigger", "ExperimentPoller", "KubernetesPodTrigger"),
    )
    named = {
        name
        for room in ("operators", "sensors", "hooks", "triggers")
        for integration in get_provider_info()[room]
        for name in integration["python-modules"]
    }
    defined = {
        ".".join(("airflow_tune_restore", *path.relative_to(ROOT).with_suffix("").parts))
        for room in ("operators", "sensors", "hooks", "triggers")
        for path in (ROOT / room).rglob("*.py")
        if any(f"({base})" in path.read_text() for base in bases)
    }
    # what others only derive from is in no DAG
    assert named == defined - {
        "airflow_tune_restore.hooks.checked_operator",
        "airflow_tune_restore.operators.map_index_label",
        "airflow_tune_restore.operators.prepare_restores",
        "airflow_tune_restore.operators.recipe_operator",
        "airflow_tune_restore.operators.retry_policy",
    }


def test_it_imports_nothing_heavy():
    code = (
        "import sys, airflow_tune_restore.provider_info as p; p.get_provider_info(); "
        "print([m for m in ('airflow', 'ray', 'fsspec', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_entry_point_leads_to_it():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["apache_airflow_provider"]["provider_info"].partition(
        ":"
    )
    assert getattr(importlib.import_module(module), name) is get_provider_info
    assert get_provider_info()["package-name"] == project["name"]


def test_the_executor_that_it_names_can_be_loaded():
    (path,) = get_provider_info()["executors"]
    module, _, name = path.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), BaseExecutor)
