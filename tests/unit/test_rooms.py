"""Who may import whom, as seen by the interpreter: the third guard beside ruff and import-linter."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("airflow_tune_restore", "airflow ray pyarrow fsspec msgspec typer rich"),
        ("airflow_tune_restore.restore.start", "airflow ray pyarrow fsspec"),
        ("airflow_tune_restore.cli.app", "msgspec typer rich"),
        ("airflow_tune_restore.cli.commands", "airflow ray pyarrow fsspec obstore"),
        ("airflow_tune_restore.launch.local", "airflow ray pyarrow fsspec"),
        ("airflow_tune_restore.runner.__main__", "airflow ray msgspec typer rich"),
        ("airflow_tune_restore.runner.attempt", "airflow ray msgspec typer rich"),
        ("airflow_tune_restore.runner.tune.controller", "airflow msgspec typer"),
        ("airflow_tune_restore.provider_info", "airflow ray pyarrow fsspec msgspec typer rich"),
        ("airflow_tune_restore.task_group", "ray pyarrow obstore"),
        ("airflow_tune_restore.plugin.app", "ray pyarrow obstore"),
        ("airflow_tune_restore.notifications.trigger_recovery", "ray pyarrow obstore"),
        ("airflow_tune_restore.executors.ray_executor", "ray pyarrow obstore"),
        ("airflow_tune_restore.triggers.failed_experiment", "ray pyarrow obstore"),
    ],
)
def test_a_room_brings_nothing_in_that_it_may_not(room, forbidden):
    code = (
        f"import sys, {room}\n"
        f"found = sorted(set({forbidden.split()!r}) & set(sys.modules))\n"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
