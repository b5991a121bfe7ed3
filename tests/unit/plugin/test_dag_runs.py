"""The restores of a DAG run, from XComs in Airflow's database."""

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from airflow_tune_restore.operators.xcom import OUTCOMES_KEY, OutcomeXCom, TrialXCom
from tests.support.airflow import page

RUN = "manual__2026-01-01T00:00:00+00:00"
AT = datetime(2026, 1, 1, tzinfo=UTC)
NUMBER = 1_000_000
"""Airflow itself counts from 1, in the same database."""

TASKS = {"a.plan": "BuildRestorePlanOperator", "b.plan": "BuildRestorePlanOperator", "other": "X"}
TRIAL_TASKS = ["RestoreTrialOperator", "RestoreTrialKubernetesOperator", "BashOperator"]


def insert_run(session):
    """Write a run of the DAG `team`, and its tasks; none of what they belong to."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

    session.execute(
        DagRun.__table__.insert().values(
            id=NUMBER, dag_id="team", run_id=RUN, run_type="manual", run_after=AT, state="success"
        )
    )
    mapped = {f"a.{operator}": operator for operator in TRIAL_TASKS}
    for task_id, operator in {**TASKS, **mapped}.items():
        session.execute(
            TaskInstance.__table__.insert().values(
                dag_id="team",
                run_id=RUN,
                task_id=task_id,
                operator=operator,
                map_index=1 if task_id in mapped else -1,
                pool="default_pool",
                pool_slots=1,
            )
        )


def insert_xcom(session, task_id, key, value):
    """Write an XCom as Airflow writes it."""
    from airflow.models.base import Base

    session.execute(
        Base.metadata.tables["xcom"]
        .insert()
        .values(
            dag_run_id=NUMBER,
            task_id=task_id,
            map_index=-1,
            key=key,
            dag_id="team",
            run_id=RUN,
            value=json.dumps(value),
            timestamp=AT,
        )
    )


@pytest.fixture(scope="module")
def run(sweeps):
    """A run with the plans of two task groups, and trial tasks of the first."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    if "map_index" not in TaskInstance.__table__.columns:
        pytest.skip(
            "this Airflow (3.4) has several tables for tasks; tests/page/slow has a real run"
        )
    page.make_tables()
    trials = [
        TrialXCom(experiment=str(sweeps / "exp"), restore_id="r1", trial_id=f"a{number}").to_xcom()
        for number in (1, 3)
    ]
    of_a = OutcomeXCom(experiment=str(sweeps / "exp"), restore_id="r1").to_xcom()
    of_b = OutcomeXCom(experiment="s3://elsewhere/exp", restore_id="r2").to_xcom()
    with create_session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        insert_run(session)
        insert_xcom(session, "a.plan", OUTCOMES_KEY, [of_a])
        insert_xcom(session, "a.plan", "return_value", trials)
        insert_xcom(session, "b.plan", OUTCOMES_KEY, [of_b])
        insert_xcom(session, "other", "return_value", [1, 2])
        session.commit()
        session.execute(text("PRAGMA foreign_keys = ON"))
    return {"dag_id": "team", "run_id": RUN}


def ask(people, who="viewer", **params):
    answer = people[who].get("/api/dag_run", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_run_shows_the_restores_of_all_its_plans(people, run):
    shown = ask(people, **run)
    assert [(each["prefix"], each["path"]) for each in shown["restores"]] == [
        ("sweeps", "exp"),
        (None, None),
    ]
    assert "below no configured prefix" in shown["restores"][1]["problem"]


def test_a_task_shows_those_of_its_group(people, run):
    for unmapped in (-1, "{MAP_INDEX}"):  # the latter is what Airflow leaves in the tab's address
        shown = ask(people, **run, task_id="b.commit", map_index=unmapped)
        assert [each["restore_id"] for each in shown["restores"]] == ["r2"]


@pytest.mark.parametrize("operator", TRIAL_TASKS)
def test_a_mapped_task_shows_its_trial_if_it_restores_one(people, run, operator):
    shown = ask(people, **run, task_id=f"a.{operator}", map_index=1)
    assert shown["trial"] == ("a3" if operator.startswith("RestoreTrial") else None)
    assert [each["restore_id"] for each in shown["restores"]] == ["r1"]


def test_a_run_without_restores_is_empty(people, run):
    assert ask(people, dag_id="team", run_id="another")["restores"] == []
    assert ask(people, dag_id="nothing", run_id=RUN, task_id="x", map_index=3)["restores"] == []


@pytest.mark.parametrize(
    "params",
    [
        {"run_id": RUN},
        {"dag_id": "team"},
        {"dag_id": "x" * 300, "run_id": RUN},
        {"dag_id": "team", "run_id": RUN, "map_index": "first"},
        {"dag_id": "team", "run_id": RUN, "task_id": "x", "map_index": 10**20},
    ],
)
def test_a_run_must_be_named(people, run, params):
    assert people["viewer"].get("/api/dag_run", params=params).status_code == 400


def test_reading_xcoms_of_that_dag_is_asked_for(people, run, monkeypatch):
    from airflow.api_fastapi.app import get_auth_manager

    manager, asked = get_auth_manager(), []

    def refuse_xcoms(*, method, user, access_entity=None, details=None):
        asked.append((details.id, access_entity.value, method))
        return access_entity.value != "XCOM"

    monkeypatch.setattr(manager, "is_authorized_dag", refuse_xcoms)
    answer = people["viewer"].get("/api/dag_run", params=run)
    assert answer.status_code == 403
    assert "read XComs of the DAG team" in answer.json()["detail"]
    assert asked == [("recovery", "RUN", "GET"), ("team", "XCOM", "GET")]
