"""Tasks of trials under a real Airflow, and the runners that they started on this machine."""

from pathlib import Path

from tests.support.airflow.standalone import Airflow

TRIAL = "restore.trial"


def one_that_reports(running: Airflow, dag_id: str, run_id: str) -> dict | None:
    """Return the task of a trial that has reported something."""
    for task in running.tasks(dag_id, run_id):
        is_running = task["task_id"] == TRIAL and task["state"] == "running"
        if is_running and "iteration " in running.whole_log(
            dag_id, run_id, TRIAL, task["map_index"]
        ):
            return task
    return None


def runners_of(experiment: Path) -> list[int]:
    """Return the process ids of the runners of an experiment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        command = command_of(int(entry.name))
        if "airflow_tune_restore.runner run" in command and str(experiment) in command:
            found.append(int(entry.name))
    return found


def command_of(pid: int) -> str:
    """Return the command line of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""
