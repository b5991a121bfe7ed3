"""DAG runs that `dag.test()` carries out in the test's own process."""

from typing import Any

from tests.support.airflow import home as airflow_home  # imported before any of Airflow


class Run:
    """A DAG run that has been carried out, and what it printed."""

    def __init__(self, dag_run: Any, log: str) -> None:
        self.state = str(dag_run.state)
        self.states: dict[str, list[str]] = {}
        self.labels: dict[str, list[str | None]] = {}
        for ti in sorted(dag_run.get_task_instances(), key=lambda ti: ti.map_index):
            self.states.setdefault(ti.task_id, []).append(str(ti.state))
            self.labels.setdefault(ti.task_id, []).append(ti.rendered_map_index)
        self.log = log
        self.xcoms = _read_xcoms(dag_run)


def _read_xcoms(dag_run: Any) -> dict[tuple[str, str], list[Any]]:
    """Return all XComs, by task and key; those of a mapped task in its order."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[tuple[str, str], list[Any]] = {}
    wanted = select(XComModel).where(XComModel.run_id == dag_run.run_id)
    with create_session() as session:
        for row in session.scalars(wanted.order_by(XComModel.map_index)):
            found.setdefault((row.task_id, row.key), []).append(XComModel.deserialize_value(row))
    return found


def run_example(dag_id: str, capfd: Any, **conf: Any) -> Run:
    """Run one of the example DAGs."""
    from tests.support.airflow.names import DagBag

    bag = DagBag(airflow_home.DAGS / f"{dag_id}.py")
    assert not bag.import_errors
    return run(bag.dags[dag_id], capfd, **conf)


def run(dag: Any, capfd: Any, **conf: Any) -> Run:
    """Run a DAG of a test, which must be registered."""
    capfd.readouterr()
    dag_run = dag.test(run_conf=conf)
    return Run(dag_run, capfd.readouterr().out)


def register(dag: Any) -> None:
    """Make a DAG of a test known: in Airflow 3.3 `dag.test()` wants it in a bundle."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models.dag import DagModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
        session.flush()
        session.add(DagModel(dag_id=dag.dag_id, bundle_name="dags-folder", fileloc=__file__))
        session.flush()
        SerializedDagModel.write_dag(
            LazyDeserializedDAG.from_dag(dag), bundle_name="dags-folder", session=session
        )
