"""Whether the DAG run that holds a lease has ended, by Airflow's database: an api-server has it."""

from datetime import UTC

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from airflow_tune_restore.hooks.dag_runs import UNKNOWN_DAG_RUN, judge_dag_run
from airflow_tune_restore.protocol.lease_objects import HolderStatus, LeaseStatus


def ask_database(status: LeaseStatus) -> HolderStatus:
    """Return whether the DAG run that holds a lease has ended; as `hooks.dag_runs.ask_dag_run`."""
    claimed = status.lease.dag_run
    if claimed is None:
        return HolderStatus(has_ended=False)
    wanted = select(DagRun.start_date, DagRun.state).where(
        DagRun.dag_id == claimed.dag_id, DagRun.run_id == claimed.run_id
    )
    try:
        with create_session() as session:
            found = session.execute(wanted).one_or_none()
    except SQLAlchemyError as error:
        text = f"Airflow's database could not be asked about its DAG run: {type(error).__name__}"
        return HolderStatus(has_ended=False, found=text)
    if found is None:
        return HolderStatus(has_ended=False, found=UNKNOWN_DAG_RUN)
    start, state = found
    return judge_dag_run(
        claimed, start and start.astimezone(UTC), str(getattr(state, "value", state))
    )
