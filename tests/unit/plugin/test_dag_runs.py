"""The restores of a DAG run, from XComs in Airflow's database."""

import itertools
import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from airflow_tune_restore.operators.xcom import OUTCOMES_KEY, OutcomeXCom, TrialXCom
from tests.support.airflow import page

RUN = "manual__2026-01-01T00:00:00+00:00"
_NUMBERS = itertools.count(1)


def xcom(task_id, key, value):
    """Return a row as Airflow writes it, in a run of the DAG `team`."""
    from airflow.models.xcom import XComModel

    return XComModel(
        dag_run_id=1,
        task_id=task_id,
        map_index=-1,
        key=key,
        dag_id="team",
        run_id=RUN,
        value=json.dumps(value),
        timestamp=datetime(2026, 1, next(_NUMBERS), tzinfo=UTC),
    )


@pytest.fixture(scope="module")
def run(sweeps):
    """A run with the plans of two task groups, and a trial task of the first."""
    from airflow.utils.session import create_session

    page.make_tables()
    trials = [
        TrialXCom(experiment=str(sweeps / "exp"), restore_id="r1", trial_id=f"a{number}").to_xcom()
        for number in (1, 3)
    ]
    of_a = OutcomeXCom(experiment=str(sweeps / "exp"), restore_id="r1").to_xcom()
    of_b = OutcomeXCom(experiment="s3://elsewhere/exp", restore_id="r2").to_xcom()
    with create_session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))  # XComs alone, without their run and tasks
        session.add_all(
            [
                xcom("a.plan", OUTCOMES_KEY, [of_a]),
                xcom("a.plan", "return_value", trials),
                xcom("b.plan", OUTCOMES_KEY, [of_b]),
                xcom("other", "return_value", [1, 2]),
            ]
        )
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
    shown = ask(people, **run, task_id="b.commit", map_index=-1)
    assert [each["restore_id"] for each in shown["restores"]] == ["r2"]


@pytest.mark.parametrize(
    "operator", ["RestoreTrialOperator", "RestoreTrialKubernetesOperator", "BashOperator"]
)
def test_a_mapped_task_shows_its_trial_if_it_restores_one(people, run, monkeypatch, operator):
    from airflow_tune_restore.plugin.routes import dag_runs

    monkeypatch.setattr(dag_runs, "_operator", lambda *_names: operator)
    shown = ask(people, **run, task_id="a.trial", map_index=1)
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
