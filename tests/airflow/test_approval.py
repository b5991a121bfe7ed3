"""A yes before the GPUs, under a real Airflow: asked as the UI asks, answered through its REST API.

Runners are recorded where any are started: they leave what a trial leaves. All else is Airflow's own.
"""

import pytest

from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.asking import (
    CODE,
    Night,
    changed,
    night_on_disk,
    night_on_s3,
    write_state,
)
from tests.support.airflow.standalone import Airflow
from tests.support.experiments.built import STATE_NAME
from tests.support.storage.servers import Server


@pytest.fixture(scope="module")
def nights(running: Airflow, seaweed: Server, tmp_path_factory) -> dict[str, Night]:
    """Four DAG runs at the same time; those of three are answered."""
    (running.dags / "asks.py").write_text(CODE)

    def on_s3(dag_id: str = "asks") -> Night:
        return night_on_s3(running, seaweed, tmp_path_factory.mktemp("night"), dag_id)

    found = {
        "approved": night_on_disk(running, tmp_path_factory.mktemp("approved")),
        "rejected": on_s3(),
        "changed": on_s3(),
        "briefly": on_s3("asks_briefly"),
    }
    for night in found.values():
        night.begin()
    for name in ("approved", "rejected", "changed"):
        found[name].wait()
    write_state(seaweed, found["changed"], "two")
    found["rejected"].answer("Reject")
    found["approved"].answer("Approve")
    found["changed"].answer("Approve")
    return found


def test_while_a_person_thinks_no_lease_is_held_and_nothing_was_written(nights):
    for name in ("approved", "rejected"):
        assert changed(nights[name].before, nights[name].asked) == set()


def test_approved_it_runs_to_its_end(nights):
    night = nights["approved"]
    assert night.shown["subject"] == "Restore 1 trial of 1 experiment: 0 GPU-hours and 8 CPU-hours"
    assert "| `failed` | - | ERROR | 0 → 8 | `CPU 1` | 0 | 8 |" in night.shown["body"]
    assert night.finish() == "success"
    assert night.states["trial"] == night.states["commit"] == ["success"]
    trials = read_base(open_store(f"{night.prefix}/one")).trials
    assert {trial.status for trial in trials} == {TrialStatus.TERMINATED}


@pytest.mark.parametrize("name", ["rejected", "briefly"], ids=["by a person", "by the default"])
def test_rejected_it_ends_in_success_and_no_object_has_changed(nights, name):
    night = nights[name]
    assert night.finish() == "success"
    assert changed(night.before, night.look()) == set()
    states = night.states
    skipped = ("plan", "trial", "continue_search", "repeat")
    assert {state for task in skipped for state in states[task]} == {"skipped"}
    assert states["commit"] == states["done"] == ["success"]
    assert night.table() == {"one": "not_started", "two": "not_started"}


def test_a_changed_state_is_named_and_nothing_is_started(nights):
    night = nights["changed"]
    assert night.finish() == "failed"
    assert night.states["plan"] == ["failed"]
    assert night.states["trial"] == ["upstream_failed"]
    assert changed(night.asked, night.look()) == set()  # no lease, of the other one neither
    message = night.log("plan").partition("Not what was approved any more: 1 experiment")[2]
    named = message.partition("Find out what wrote there")[0]
    assert f"{night.prefix}/two: {STATE_NAME} (SHA-256 " in named
    assert f"{night.prefix}/one" not in named
    assert night.table() == {"one": "refused", "two": "refused"}
