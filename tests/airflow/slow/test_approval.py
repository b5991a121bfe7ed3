"""What Airflow does with a question that nobody answers, and with one that is asked again."""

import pytest

from tests.support.airflow.asking import (
    APPROVE,
    CODE,
    changed,
    night_on_s3,
    write_state,
)


@pytest.fixture(autouse=True)
def asking(running):
    (running.dags / "asks.py").write_text(CODE)


def test_without_an_answer_and_a_default_it_fails_and_is_not_tried_again(
    running, seaweed, tmp_path
):
    night = night_on_s3(running, seaweed, tmp_path, "asks_in_vain")
    night.begin()
    assert night.finish() == "failed"
    tasks = night.running.tasks(night.dag_id, night.run)
    (approve,) = (task for task in tasks if task["task_id"] == APPROVE)
    assert (approve["state"], approve["try_number"]) == ("failed", 1)
    assert "Nobody has answered in time. Nothing was started" in night.log("approve")
    assert changed(night.before, night.look()) == set()


def test_a_page_that_airflow_does_not_show_cannot_be_approved(running, seaweed, tmp_path):
    """Airflow keeps the first page of a task that is cleared: a yes to it would count for another one."""
    night = night_on_s3(running, seaweed, tmp_path)
    night.begin()
    night.wait()
    write_state(seaweed, night, "two")
    night.answer("Approve")
    assert night.finish() == "failed"
    night.running.clear(night.dag_id, night.run, "restore.preview")
    assert night.finish() == "failed"
    assert night.states["approve"] == ["failed"]
    assert "Airflow shows the page of an earlier preview" in night.log("approve")
    path = f"/api/v2/dags/asks/dagRuns/{night.run}/taskInstances/{APPROVE}/-1/hitlDetails"
    assert night.running.call("GET", path)["body"] == night.shown["body"]
    assert changed(night.asked, night.look()) == set()
