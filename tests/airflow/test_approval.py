"""A yes before the GPUs, under a real Airflow: asked as the UI asks, answered through its REST API.

Runners are recorded where any are started: they leave what a trial leaves. All else is Airflow's own.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.canary import objects
from tests.support.airflow.standalone import Airflow
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state
from tests.support.storage.servers import Server

CODE = '''
"""Asks a person before it restores experiments."""

from airflow.sdk import DAG

from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from tests.support.airflow import recorded

recorded.install()

WAYS = {
    "asks": {},
    "asks_briefly": {"approval_timeout": 1, "approval_default": "Reject"},
    "asks_in_vain": {"approval_timeout": 1},
}
for dag_id, approval in WAYS.items():
    with DAG(dag_id, schedule=None) as dag:
        TuneRestoreTaskGroup(
            "restore",
            prefix="{{ dag_run.conf['prefix'] }}",
            wait=False,
            stale_after=0,
            trainable="m:train",
            resume_errored=True,
            repeat=True,
            require_approval=True,
            **approval,
        )
    globals()[dag_id] = dag
'''
APPROVE, PLAN = "restore.approve", "restore.plan"
SKIPPED = ["plan", "trial", "continue_search", "repeat"]


@pytest.fixture(scope="module")
def asking(running: Airflow) -> Airflow:
    """The running Airflow, with DAGs that ask."""
    (running.dags / "asks.py").write_text(CODE)
    return running


def make_sweep(directory: Path) -> Path:
    last = {"training_iteration": 2, "time_total_s": 7200.0}
    stop = {"training_iteration": 8}
    rows = [
        make_row("failed", status="ERROR", last_result=last, stopping_criterion=stop),
        make_row("done", last_result={"training_iteration": 8, "done": True}),
    ]
    return make_experiment(directory, rows)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep with a trial that failed."""
    return make_sweep(tmp_path / "sweeps" / "lr")


@pytest.fixture
def on_s3(seaweed: Server, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Two such sweeps in a bucket; the conf of the DAG run that finds them."""

    def upload(prefix: str) -> dict[str, str]:
        for name in ("one", "two"):
            seaweed.upload(make_sweep(tmp_path / name), f"{prefix}/{name}")
        return {"prefix": f"s3://seaweed@{seaweed.bucket}/{prefix}"}

    return upload


def everything(seaweed: Server, prefix: str) -> dict[str, bytes]:
    """Return all objects below a prefix, but for the index that the search of `find` keeps."""
    found = objects(seaweed, f"{seaweed.bucket}/{prefix}")
    return {name: body for name, body in found.items() if f"{prefix}/.tune_restore/" not in name}


def test_approved_it_runs_to_its_end(asking, sweep):
    run = asking.trigger("asks", {"prefix": str(sweep.parent)})
    shown = asking.request("asks", run, APPROVE)
    assert shown["subject"] == "Restore 1 trial of 1 experiment: 0 GPU-hours and 8 CPU-hours"
    assert "| `failed` | - | ERROR | 0 → 8 | `CPU 1` | 0 | 8 |" in shown["body"]
    assert not (sweep / ".tune_restore").exists()  # no lease, and nothing else
    asking.answer("asks", run, APPROVE, "Approve")
    assert asking.finish("asks", run) == "success"
    states = asking.states("asks", run)
    assert states["restore.trial"] == states["restore.commit"] == ["success"]
    assert {t.status for t in read_base(open_store(str(sweep))).trials} == {TrialStatus.TERMINATED}


def test_rejected_it_ends_in_success_and_no_object_has_changed(asking, seaweed, on_s3):
    conf = on_s3("rejected")
    before = everything(seaweed, "rejected")
    run = asking.trigger("asks", conf)
    asking.request("asks", run, APPROVE)
    asked = objects(seaweed, f"{seaweed.bucket}/rejected")
    assert everything(seaweed, "rejected") == before  # preview has written nothing
    asking.answer("asks", run, APPROVE, "Reject")
    assert asking.finish("asks", run) == "success"
    assert objects(seaweed, f"{seaweed.bucket}/rejected") == asked
    states = asking.states("asks", run)
    assert {each for task in SKIPPED for each in states[f"restore.{task}"]} == {"skipped"}
    assert states["restore.commit"] == states["restore.done"] == ["success"]
    table = asking.xcom("asks", run, "restore.commit", "experiments")
    assert [line["outcome"] for line in table] == ["not_started", "not_started"]


def test_a_changed_state_is_named_and_nothing_is_started(asking, seaweed, on_s3):
    conf = on_s3("changed")
    run = asking.trigger("asks", conf)
    shown = asking.request("asks", run, APPROVE)
    alive = make_state([make_row("failed", status="RUNNING")])
    place = f"{seaweed.bucket}/changed/two/{STATE_NAME}"
    seaweed.filesystem().pipe_file(place, alive)
    before = everything(seaweed, "changed")
    asking.answer("asks", run, APPROVE, "Approve")
    assert asking.finish("asks", run) == "failed"
    states = asking.states("asks", run)
    assert states[PLAN] == ["failed"]
    assert states["restore.trial"] == ["upstream_failed"]
    assert everything(seaweed, "changed") == before  # not even a lease of the other one
    log = asking.whole_log("asks", run, PLAN)
    assert f"{conf['prefix']}/two: {STATE_NAME} (SHA-256 " in log
    assert "Not what was approved any more: 1 experiment" in log
    assert (
        f"{conf['prefix']}/one: " not in log.partition("Not what was approved")[2].split("\\n")[0]
    )
    table = asking.xcom("asks", run, "restore.commit", "experiments")
    assert [line["outcome"] for line in table] == ["refused", "refused"]

    # Airflow shows the first page for ever: a yes to it would count for another one
    asking.clear("asks", run, "restore.preview")
    assert asking.finish("asks", run) == "failed"
    assert asking.states("asks", run)[APPROVE] == ["failed"]
    assert "Airflow shows the page of an earlier preview" in asking.task_log("asks", run, APPROVE)
    path = f"/api/v2/dags/asks/dagRuns/{run}/taskInstances/{APPROVE}/-1/hitlDetails"
    assert asking.call("GET", path)["body"] == shown["body"]
    assert everything(seaweed, "changed") == before


def test_nobody_answers(asking, sweep):
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    conf = {"prefix": str(sweep.parent)}
    runs = {dag_id: asking.trigger(dag_id, conf) for dag_id in ("asks_briefly", "asks_in_vain")}
    briefly, in_vain = runs.values()
    assert asking.finish("asks_briefly", briefly) == "success"
    assert asking.states("asks_briefly", briefly)[PLAN] == ["skipped"]
    assert asking.finish("asks_in_vain", in_vain) == "failed"
    (approve,) = (t for t in asking.tasks("asks_in_vain", in_vain) if t["task_id"] == APPROVE)
    assert (approve["state"], approve["try_number"]) == ("failed", 1)
    assert "Nobody has answered in time. Nothing was started, and no lease was taken." in (
        asking.task_log("asks_in_vain", in_vain, APPROVE)
    )
    assert {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()} == before
