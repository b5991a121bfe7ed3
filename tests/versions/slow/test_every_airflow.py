"""Every release of Airflow in the matrix, with the packages of its time."""

import pytest

from tests.matrix.environments import (
    AIRFLOW_TESTS,
    AIRFLOWS,
    OLDEST_AIRFLOW,
    airflow_python,
    run_tests,
)

NIGHTS = [
    pytest.param(OLDEST_AIRFLOW, "tests/airflow/test_night.py", id="a night on the oldest"),
    pytest.param(
        "3.2.2", "tests/airflow/slow/test_killed_while_deferred.py", id="a kill without on_kill"
    ),
]


@pytest.mark.parametrize("version", AIRFLOWS)
def test_all_unit_tests_pass_and_all_dags_parse(version):
    done = run_tests(airflow_python(version), *AIRFLOW_TESTS)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize(("version", "tests"), NIGHTS)
def test_real_processes_of_it_pass(version, tests):
    done = run_tests(airflow_python(version), tests)
    assert done.returncode == 0, done.stdout[-6000:]
