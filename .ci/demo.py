"""A real Tune sweep fails, its driver is killed, and `dags/nightly_recovery.py` restores it.

Everything runs on this machine: a real S3 server (SeaweedFS), Ray, and Airflow's own processes.
The demo leaves its files in `.demo/`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from airflow_tune_restore.exceptions import TuneRestoreError  # noqa: E402
from airflow_tune_restore.experiments.read import read_experiment  # noqa: E402
from airflow_tune_restore.storage.base import ObjectStore  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from tests.support.airflow.standalone import Airflow, airflow  # noqa: E402
from tests.support.storage.servers import s3_server  # noqa: E402
from tests.support.waiting import PATIENCE_SECONDS  # noqa: E402

HOME = ROOT / ".demo"
EXPERIMENT = "lr_sweep"


def main() -> int:
    """Run the demo and return its exit code: 0 if the DAG run succeeded, else 1."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # private Rays on 127.0.0.1
    with s3_server() as s3:
        os.environ.update(s3.env)
        prefix = f"{s3.url}/sweeps"
        say(f"1. A Ray Tune sweep of four trials starts on {prefix}/{EXPERIMENT} ...")
        break_sweep(prefix)
        say("2. One trial raised, then its driver was killed with kill -9. What Ray left behind:")
        tune_restore("scan", prefix, "--stale-after", "5")
        time.sleep(5)
        tune_restore("scan", prefix, "--stale-after", "5")
        tune_restore("plan", f"{prefix}/{EXPERIMENT}", "--resume-errored")
        say("3. Airflow starts and runs dags/nightly_recovery.py ...")
        state = recover(prefix)
        say(f"4. The DAG run ended: {state}. The experiment now:")
        tune_restore("scan", prefix)
        say("5. And as Ray's own ResultGrid reads it:")
        subprocess.run([sys.executable, "-c", READ_WITH_RAY, f"{prefix}/{EXPERIMENT}"], check=True)
    return 0 if state == "success" else 1


def break_sweep(prefix: str) -> None:
    """Run the sweep until one trial has failed and another runs, then kill its driver."""
    command = [sys.executable, str(ROOT / "dags" / "example_sweep.py"), "--storage-path", prefix]
    log = (HOME / "sweep.log").open("wb")
    driver = subprocess.Popen(
        [*command, "--name", EXPERIMENT, "--seconds", "2"],
        env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_AIR_NEW_OUTPUT": "0"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    store = open_store(f"{prefix}/{EXPERIMENT}")
    deadline = time.monotonic() + 180
    while not is_half_broken(store) and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    if not is_half_broken(store):
        sys.exit(f"The sweep did not fail as it should; see {HOME}/sweep.log")


def is_half_broken(store: ObjectStore) -> bool:
    """Return whether the newest state shows a failed trial and a running one."""
    try:
        statuses = read_experiment(store).count_by_status
    except TuneRestoreError:
        return False
    return "ERROR" in statuses and "RUNNING" in statuses


def recover(prefix: str) -> str:
    """Run the nightly DAG under a real Airflow and return the state of the run."""
    with airflow(HOME / "airflow", TUNE_RESTORE_PREFIX=prefix) as running:
        # a nightly run waits half an hour, to be sure that the driver is dead
        run_id = running.trigger("nightly_recovery", {"stale_after": 5})
        for task in changes(running, "nightly_recovery", run_id):
            label = f" [{task['rendered_map_index']}]" if task["rendered_map_index"] else ""
            if task["state"] is not None:
                print(f"   {task['task_id']}{label}: {task['state']}", flush=True)
        say("   The log of its commit task ends with trials before and after:")
        print(running.task_log("nightly_recovery", run_id, "restore.commit"))
        return running.state("nightly_recovery", run_id)


def changes(running: Airflow, dag_id: str, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield each task instance whenever its state changes, until the run has ended."""
    seen: dict[str, str | None] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        has_ended = running.state(dag_id, run_id) in ("success", "failed")
        for task in running.tasks(dag_id, run_id):
            if seen.get(task["id"]) != task["state"]:
                seen[task["id"]] = task["state"]
                yield task
        if has_ended:
            return
        time.sleep(1)
    raise TimeoutError(f"{dag_id} {run_id} did not end\n{running.log_tail()}")


def tune_restore(*arguments: str) -> None:
    """Run the command as a user would, and print it."""
    print(f"\n$ tune-restore {' '.join(arguments)}", flush=True)
    subprocess.run([str(Path(sys.executable).parent / "tune-restore"), *arguments], check=True)


def say(text: str) -> None:
    """Print a step."""
    print(f"\n{text}", flush=True)


READ_WITH_RAY = """
import sys
from ray.tune import ExperimentAnalysis, ResultGrid
grid = ResultGrid(ExperimentAnalysis(sys.argv[1], default_metric="score", default_mode="max"))
columns = ["trial_id", "config/lr", "training_iteration", "score"]
print(grid.get_dataframe()[columns].to_string(index=False))
print(f"{len(grid)} trials, {grid.num_errors} errors, {grid.num_terminated} terminated")
"""

if __name__ == "__main__":
    sys.exit(main())
