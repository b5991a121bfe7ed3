"""What the database of a real Airflow has: rows of a task by table, and the sizes of XComs."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

OF_AIRFLOW = {"task_instance", "rendered_task_instance_fields", "log"}
"""Tables in which Airflow itself has rows for each mapped task; `log` is its audit log."""


def rows_of_task(database: Path, dag_id: str, task_id: str) -> dict[str, int]:
    """Return how many rows each table has about the instances of a task, without empty ones."""
    found = {}
    with _open(database) as db:
        for table in _tables(db):
            columns = {row[1] for row in db.execute(f"pragma table_info({table})")}
            if {"task_id", "dag_id"} <= columns:
                query = f"select count(*) from {table} where dag_id = ? and task_id = ?"
            elif columns & {"ti_id", "task_instance_id"}:
                (key,) = columns & {"ti_id", "task_instance_id"}
                query = (
                    f"select count(*) from {table} join task_instance on {key} = task_instance.id "
                    "where task_instance.dag_id = ? and task_instance.task_id = ?"
                )
            else:
                continue
            (count,) = db.execute(query, (dag_id, task_id)).fetchone()
            if count:
                found[table] = count
    return found


def rows_of_all(database: Path) -> dict[str, int]:
    """Return how many rows each table has."""
    with _open(database) as db:
        return {
            table: db.execute(f"select count(*) from {table}").fetchone()[0]
            for table in _tables(db)
        }


def largest_xcoms(database: Path, dag_id: str) -> dict[tuple[str, str], int]:
    """Return the bytes of the largest XCom of each task of a DAG under each key."""
    query = (
        "select task_id, key, max(length(cast(value as blob))) from xcom where dag_id = ? "
        "group by task_id, key"
    )
    with _open(database) as db:
        return {(task, key): size or 0 for task, key, size in db.execute(query, (dag_id,))}


@contextlib.contextmanager
def _open(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as db:
        yield db


def _tables(db: sqlite3.Connection) -> list[str]:
    query = "select name from sqlite_master where type='table' order by name"
    return [name for (name,) in db.execute(query)]
