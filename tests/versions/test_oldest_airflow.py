"""The oldest Airflow, with the packages of its time: what users of it have, on every run of the tests.

`slow/` has the others, and real nights.
"""

import subprocess
from pathlib import Path

import pytest

from tests.matrix.environments import OLDEST_AIRFLOW, UV, airflow_python, run_tests

KEYS = "tests/servers/test_store_opening.py::test_a_filesystem_keeps_the_session_that_it_was_given"
DAGS = "tests/airflow/test_example_dags.py::test_all_are_parsed_without_an_error_or_a_warning"
README = "tests/unit/test_readme.py::test_its_first_python_is_a_dag_file"
ROOMS = [
    f"tests/unit/{room}"
    for room in "operators sensors triggers hooks notifications executors".split()
]
PLUGIN = [f"tests/unit/plugin/test_{what}.py" for what in "plugin dag_runs settings".split()]
COMMANDS = ["info", "plugins", "providers list"]


@pytest.fixture(scope="module")
def python():
    return airflow_python(OLDEST_AIRFLOW)


def test_what_imports_airflow_passes_its_unit_tests_and_all_dags_parse(python):
    done = run_tests(
        python, *ROOMS, *PLUGIN, "tests/unit/test_task_group.py", "tests/unit/test_provider_info.py",
        README, DAGS, KEYS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_airflow_warn_of_nothing(python, tmp_path, command):
    done = subprocess.run(
        [str(Path(python).with_name("airflow")), *command.split()],
        env={"AIRFLOW_HOME": str(tmp_path), "PATH": str(Path(python).parent)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert not [line for line in shown.splitlines() if "warn" in line.lower()]


def test_the_installed_packages_fit_together(python):
    subprocess.run([UV, "pip", "check", "--quiet", "--python", python], check=True)
