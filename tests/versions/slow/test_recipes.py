"""The commands of docs/install.md, as a user runs them: a fresh environment with the oldest Airflow.

GitHub has the constraints; here uv makes them, for the day that Airflow came out.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix.environments import OLDEST_AIRFLOW, build_wheel, make_constraints, pinned
from tests.support import ROOT
from tests.support.experiments.sweeps import copy_sweep, ends

PAGE = (ROOT / "docs" / "install.md").read_text()
README = (ROOT / "README.md").read_text()
SHOWN = "3.2.2"
"""The Airflow in the recipes."""


def block(text: str, heading: str, language: str) -> str:
    """Return the first code block in a language below a heading."""
    below = text.split(f"\n## {heading}\n")[1]
    return re.search(rf"^```{language}\n(.*?)^```", below, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A directory with the wheel, an environment with pip alone, and Airflow's constraints."""
    made = tmp_path_factory.mktemp("deployment")
    build_wheel(made / "dist")
    run(made, sys.executable, "-m", "venv", "env")
    make_constraints(OLDEST_AIRFLOW, made / "constraints.txt")
    return made


@pytest.fixture(scope="module")
def installed(home) -> Path:
    """The same, after the recipe."""
    recipe = block(PAGE, "Into a virtual environment", "sh")
    assert recipe.count(f"AIRFLOW_VERSION={SHOWN}\n") == 1
    recipe = recipe.replace(SHOWN, OLDEST_AIRFLOW)
    recipe, count = re.subn(r'"https://raw\S+"', "constraints.txt", recipe)
    assert count == 1
    shown = run(home, "bash", "-euc", recipe)
    assert "airflow-tune-restore" in shown
    return home


def run(home: Path, *command: str, **env: str) -> str:
    """Run a command in the directory, with nothing of this environment; return what it printed."""
    others = ("AIRFLOW", "AWS_", "PYTHON", "RAY_", "TUNE_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    path = f"{home}/env/bin:/usr/local/bin:/usr/bin:/bin"
    mine = {"PATH": path, "AIRFLOW_HOME": str(home / "airflow"), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        command, cwd=home, env=kept | mine | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_dag_of_the_readme_restores_a_failed_experiment(installed, tmp_path):
    experiment = copy_sweep("errored", tmp_path / "sweeps" / "errored")
    dags = tmp_path / "dags"
    (dags / "my_project").mkdir(parents=True)
    code = (ROOT / "dags" / "example_sweep.py").read_text()
    repaired = code.replace('os.environ.get("EXAMPLE_SWEEP_REPAIRED") == "1"', "True")
    assert repaired != code
    (dags / "my_project" / "training.py").write_text(repaired)
    dag = block(README, "In your DAG", "python")
    dag, count = re.subn(r'prefix="s3://.*?"', f'prefix="{tmp_path}/sweeps"', dag)
    assert count == 1
    (dags / "nightly.py").write_text(dag)
    env = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(dags),
    }
    run(installed, "airflow", "db", "migrate", **env)
    run(installed, "airflow", "dags", "test", "nightly_recovery", **env)
    assert ends(experiment) == [("TERMINATED", 6)] * 4


def test_the_packages_fit_together_and_no_pinned_one_was_moved(installed):
    run(installed, "pip", "check")
    pins = pinned((installed / "constraints.txt").read_text())
    found = pinned(run(installed, "pip", "freeze"))
    assert found["apache-airflow"] == OLDEST_AIRFLOW
    moved = {
        name: (pins[name], found[name]) for name in found.keys() & pins if found[name] != pins[name]
    }
    assert not moved


def test_what_to_look_at_afterwards_shows_it(installed):
    run(installed, "airflow", "db", "migrate")
    looks = block(PAGE, "See that it works", "sh").replace(
        "s3://my-bucket/sweeps", str(ROOT / "tests" / "golden" / "example_sweep")
    )
    shown = run(installed, "bash", "-euc", looks, AIRFLOW__CORE__LOAD_EXAMPLES="False")
    assert "No data found" in shown
    assert "errored" in shown
