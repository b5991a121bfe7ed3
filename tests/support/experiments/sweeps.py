"""The example sweep (`dags/example_sweep.py`) as tests run it: one that fails, is killed, or goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.runner.ray_session import STARTS
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import Gate

DAGS = ROOT / "dags"
SWEEP = DAGS / "example_sweep.py"


def fail_sweep(storage_path: str | Path, name: str) -> None:
    """Run the sweep to its end; one of its trials fails."""
    for _ in range(STARTS):
        done = subprocess.run(_command(storage_path, name), capture_output=True, text=True)
        if "timed out during startup" not in done.stderr:
            break
    # a driver that crashed ends with 1 as well
    found = read_experiment(open_store(f"{storage_path}/{name}")).count_by_status
    wanted = {"ERROR": 1, "TERMINATED": 3}
    assert (done.returncode, found) == (1, wanted), done.stdout[-3000:] + done.stderr[-3000:]


def start_sweep(
    storage_path: str | Path, name: str, *, seconds: float, until: Callable[[], bool], **env: str
) -> "subprocess.Popen[bytes]":
    """Start a sweep whose iterations take so long, in a process group of its own; wait `until`."""
    for _ in range(STARTS):
        driver = subprocess.Popen(
            [*_command(storage_path, name), "--seconds", str(seconds)],
            env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "1", **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and driver.poll() is None:
            if until():
                return driver
            time.sleep(0.2)
        kill(driver)
    raise AssertionError(f"the sweep {name} never got going")


def kill(driver: "subprocess.Popen[bytes]") -> None:
    """Kill a driver and all it started."""
    if driver.poll() is None:
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def killed_sweep(
    storage_path: Path, name: str = "slow", *, seconds: float = 2, reported: int = 1
) -> Path:
    """Kill a sweep's driver with `kill -9` when so many of its trials have reported."""
    experiment = storage_path / name
    for _ in range(STARTS):
        kill(
            start_sweep(
                storage_path,
                name,
                seconds=seconds,
                until=lambda: count_reported(experiment) >= reported,
            )
        )
        if count_reported(experiment) >= reported:
            return experiment
        shutil.rmtree(experiment)  # killed in the middle of writing its state
    raise AssertionError("its state was cut off every time")


def count_reported(experiment: Path) -> int:
    """Return how many trials have results in the newest state; none if it is being written."""
    states = list(experiment.glob("experiment_state-*.json"))
    try:
        rows = json.loads(max(states).read_text())["trial_data"] if states else []
    except ValueError:
        return 0
    return sum("score" in json.loads(run)["last_result"] for _, run in rows)


def copy_dags(directory: Path, gate: Gate) -> Path:
    """Copy the example DAGs and the sweep; trials of the copy wait at the gate."""
    for path in DAGS.glob("*.py"):
        shutil.copy(path, directory)
    step = '        time.sleep(config["seconds"])\n'
    wait = (
        f"        while iteration >= {gate.before} and not Path({str(gate.path)!r}).exists():\n"
        "            time.sleep(0.05)\n"
    )
    code = SWEEP.read_text()
    assert code.count(step) == 1
    (directory / SWEEP.name).write_text(code.replace(step, step + wait))
    return directory


def _command(storage_path: str | Path, name: str) -> list[str]:
    place = ["--storage-path", str(storage_path), "--name", name]
    return [sys.executable, str(SWEEP), *place]
