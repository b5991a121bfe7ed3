"""Tasks of a real Airflow run as jobs of a real Ray cluster with authentication, beside LocalExecutor.

`slow/` has the rest, on the oldest and the newest Airflow, too.
"""

import time

import pytest

from tests.support.airflow.on_ray import airflow_on_ray

pytestmark = [pytest.mark.airflow, pytest.mark.ray]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with airflow_on_ray(tmp_path_factory.mktemp("airflow")) as running:
        yield running


def test_a_task_whose_scheduler_is_killed_runs_once_and_its_log_is_shown_meanwhile(site, tmp_path):
    waiting = site.begin("waits", tmp_path / "waits")
    job = waiting.wait_for_job("PENDING")
    beside = site.begin("beside", tmp_path / "beside")
    assert beside.finish() == {"on_ray": ["success"], "local": ["success"], "fails": ["failed"]}
    assert site.airflow.xcom("beside", beside.id, "local", "return_value") == "Hello"
    site.airflow.eventually(lambda: "tick 1" in waiting.log("waiting"))
    with site.adoption((waiting, "waiting")):
        site.airflow.kill_scheduler()
    assert site.jobs()[job] == "RUNNING"
    waiting.go_on()
    assert waiting.finish() == {"waiting": ["success"]}, site.airflow.log_tail()
    assert waiting.task("waiting")["try_number"] == 1
    assert waiting.lines("waiting") == ["ran"]
    site.airflow.eventually(lambda: job not in site.jobs())  # they are deleted from Ray's list
    time.sleep(3)
    assert job not in site.jobs()  # Ray writes those that it still looks at anew
