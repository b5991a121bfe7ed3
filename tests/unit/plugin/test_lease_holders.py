"""Whether the DAG run that holds a lease has ended, by Airflow's database."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from airflow_tune_restore.plugin.lease_holders import ask_database
from airflow_tune_restore.protocol.lease_objects import DagRunId, Lease, LeaseStatus
from tests.support.airflow import page

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture(scope="module")
def _dag_runs():
    """DAG runs of all states, whose ids are their states."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    page.make_tables()
    with create_session() as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        for number, state in enumerate(("success", "failed", "running", "queued")):
            session.execute(
                DagRun.__table__.insert().values(
                    id=100 + number,
                    dag_id="holder",
                    run_id=state,
                    run_type="manual",
                    run_after=AT,
                    start_date=AT,
                    state=state,
                )
            )
        session.commit()
        session.execute(text("PRAGMA foreign_keys = ON"))


def ask(run_id, started_at=AT):
    dag_run = DagRunId(dag_id="holder", run_id=run_id, started_at=started_at.isoformat())
    return ask_database(status(dag_run))


def status(dag_run):
    lease = Lease(epoch=1, restore_id="r1", holder="x", ttl_seconds=900, dag_run=dag_run)
    return LeaseStatus(
        experiment="s3://b/e", lease=lease, claimed_at=AT, seen_at=AT, silent_seconds=5.0
    )


@pytest.mark.usefixtures("_dag_runs")
@pytest.mark.parametrize(
    ("state", "has_ended"),
    [("success", True), ("failed", True), ("running", False), ("queued", False)],
)
def test_a_holder_has_ended_with_its_dag_run(state, has_ended):
    answer = ask(state)
    assert answer.has_ended is has_ended
    assert f"Its DAG run is {state}" in answer.found


@pytest.mark.usefixtures("_dag_runs")
def test_a_run_that_is_unknown_or_began_at_another_time_says_nothing():
    assert not ask("no_such_run").has_ended
    other = ask("success", AT + timedelta(microseconds=1))
    assert not other.has_ended
    assert "started at another time" in other.found


def test_a_holder_without_a_dag_run_is_not_asked_about():
    assert ask_database(status(None)).found == ""


def test_a_database_that_fails_says_nothing(monkeypatch):
    from sqlalchemy.exc import OperationalError

    from airflow_tune_restore.plugin import lease_holders

    def fail():
        raise OperationalError("select", {}, Exception("down"))

    monkeypatch.setattr(lease_holders, "create_session", fail)
    answer = ask("success")
    assert (answer.has_ended, "could not be asked" in answer.found) == (False, True)
