"""The example sweep (`dags/example_sweep.py`) as tests run it: failed before, failing, killed, or living.

copy_sweep("killed", directory / "mine")     what a real Ray left once (tests/golden/example_sweep)
copy_dags(directory, gates)                  the example DAGs; trials of the sweep can be held up
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.runner.ray_session import STARTS
from airflow_tune_restore.storage.fs import open_store
from tests.support import GOLDEN, ROOT
from tests.support.experiments.failed import TRIAL_FILES, has, rows
from tests.support.waiting import PATIENCE_SECONDS, eventually

DAGS = ROOT / "dags"
SWEEP = DAGS / "example_sweep.py"
MADE = GOLDEN / "example_sweep"
KINDS = ("errored", "killed")

HANGS = {0.03: 3, 0.1: 1}
"""What the killed sweep waited for: the learning rates of two trials, and iterations never reached."""

STEP = '        time.sleep(config["seconds"])\n'
GRID = "[0.01, 0.03, 0.1, 0.3]"


def copy_sweep(kind: str, target: Path) -> Path:
    """Copy a failed sweep: a moved experiment is restored where it is.

    `errored`: three trials finished, one raised at iteration 4. `killed`: one finished, one was killed
    after iteration 2, one before it had reported anything, and one never started.
    """
    shutil.copytree(MADE / kind, target)
    return target


def copy_short_sweep(target: Path) -> Path:
    """Copy the killed sweep as if only two trials had been drawn: one finished, one was killed."""
    (state,) = copy_sweep("killed", target).glob("experiment_state-*.json")
    content = json.loads(state.read_text())
    content["trial_data"] = [
        row
        for row in content["trial_data"]
        if "training_iteration" in json.loads(row[1])["last_result"]
    ]
    state.write_text(json.dumps(content))
    return target


def copy_failed_trials(target: Path, count: int) -> Path:
    """Copy the failed trial of the sweep so many times; nothing else is left of the sweep."""
    (state,) = copy_sweep("errored", target).glob("experiment_state-*.json")
    content = json.loads(state.read_text())
    (row,) = [row for row in content["trial_data"] if json.loads(row[0])["status"] == "ERROR"]
    trial_id, directory = (json.loads(row[0])[key] for key in ("trial_id", "relative_logdir"))
    content["trial_data"] = []
    for number in range(count):
        new = f"{trial_id[:-5]}{number + 10:05}"
        shutil.copytree(target / directory, target / directory.replace(trial_id, new))
        content["trial_data"].append([part.replace(trial_id, new) for part in row])
    state.write_text(json.dumps(content))
    return target


def make_sweep(kind: str, directory: Path) -> Path:
    """Have a real Ray make one."""
    made = killed_sweep(directory) if kind == "killed" else directory / kind
    if kind == "errored":
        fail_sweep(directory, kind)
    return made


class Gates:
    """Trials of copied DAGs stand still before iteration 4 while the gate of their experiment is closed.

    Args:
        directory: Holds a file for each closed gate.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def close(self, experiment: str) -> None:
        """Let no trial of the experiment go on."""
        (self.directory / experiment).touch()

    def open(self, experiment: str) -> None:
        """Let them all go on."""
        (self.directory / experiment).unlink(missing_ok=True)


def copy_dags(directory: Path, gates: Gates) -> Path:
    """Copy the example DAGs and the sweep, whose trials wait at gates; a new one has two trials."""
    for path in DAGS.glob("*.py"):
        shutil.copy(path, directory)
    name = "tune.get_context().get_experiment_name()"
    closed = f"Path({str(gates.directory)!r}, {name}).exists()"
    script = _write_sweep(directory, f"iteration >= 4 and {closed}")
    code = script.read_text()
    assert code.count(GRID) == 1
    script.write_text(code.replace(GRID, "[0.1, 0.3]"))
    return directory


def copy_dag(directory: Path, dag_id: str, copy_id: str, **env: str) -> None:
    """Copy an example DAG under another id, as it would be if this were in the environment."""
    code = (DAGS / f"{dag_id}.py").read_text()
    assert code.count(f'DAG(\n    "{dag_id}"') == code.count("\nimport os\n") == 1
    code = code.replace(f'DAG(\n    "{dag_id}"', f'DAG(\n    "{copy_id}"')
    code = code.replace("\nimport os\n", f"\nimport os\n\nos.environ |= {env!r}\n")
    # another asset, too
    (directory / f"{copy_id}.py").write_text(code.replace('"failed_sweeps"', f'"of_{copy_id}"'))


def copy_trainables(directory: Path) -> Path:
    """Copy the code of the experiments in `tests/golden/failed`, to be sent to a cluster."""
    package = Path("tests", "support", "experiments")
    for place in (Path("tests"), package.parent, package):
        (directory / place).mkdir()
        for path in (ROOT / place).glob("*.py"):
            shutil.copy(path, directory / place)
    return directory


def fail_sweep(storage_path: str | Path, name: str) -> None:
    """Run the sweep to its end; one of its trials fails."""
    for _ in range(STARTS):
        done = subprocess.run(
            _command(SWEEP, storage_path, name), env=_environment(), capture_output=True, text=True
        )
        if "timed out during startup" not in done.stderr:
            break
    # a driver that crashed ends with 1 as well
    found = read_experiment(open_store(f"{storage_path}/{name}")).count_by_status
    wanted = {"ERROR": 1, "TERMINATED": 3}
    assert (done.returncode, found) == (1, wanted), done.stdout[-3000:] + done.stderr[-3000:]


def killed_sweep(storage_path: Path, name: str = "killed") -> Path:
    """Kill a sweep's driver with `kill -9`, always at the same point: two of its trials wait there."""
    experiment = storage_path / name
    with tempfile.TemporaryDirectory() as scratch:
        script = _write_sweep(Path(scratch), f'iteration >= {HANGS}.get(config["lr"], 99)')
        driver = start_sweep(
            storage_path, name, seconds=0, until=lambda: _hangs(experiment), script=script
        )
        try:
            eventually(lambda: _stands_still(driver, experiment))
        finally:
            kill(driver)
    return experiment


def start_sweep(
    storage_path: str | Path,
    name: str,
    *,
    seconds: float,
    until: Callable[[], bool],
    script: Path = SWEEP,
    **env: str,
) -> "subprocess.Popen[bytes]":
    """Start a sweep whose iterations take so long, in a process group of its own; wait `until`."""
    for _ in range(STARTS):
        driver = subprocess.Popen(
            [*_command(script, storage_path, name), "--seconds", str(seconds)],
            env=_environment(**env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
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


def ends(experiment: Path) -> list[tuple[str, int]]:
    """Return status and last iteration of each trial, sorted."""
    newest = max(experiment.glob("experiment_state-*.json"))
    return statuses_in(newest.read_text())


def statuses_in(state: str | bytes) -> list[tuple[str, int]]:
    """Return the same of the text of a state file."""
    return sorted(
        (json.loads(t)["status"], json.loads(run)["last_result"].get("training_iteration", 0))
        for t, run in json.loads(state)["trial_data"]
    )


def _stands_still(driver: "subprocess.Popen[bytes]", experiment: Path) -> bool:
    """Stop a driver where it is to be killed; let it go on if it was just writing something."""
    assert driver.poll() is None, "the driver died before it was killed"
    os.killpg(driver.pid, signal.SIGSTOP)
    if _hangs(experiment):
        return True
    os.killpg(driver.pid, signal.SIGCONT)
    return False


def _hangs(experiment: Path) -> bool:
    """Whether it has come to where it is killed, and all that Ray writes until then is in the storage."""
    wanted = [("PENDING", 0), ("RUNNING", 0), ("RUNNING", 2), ("TERMINATED", 6)]
    try:
        if ends(experiment) != wanted:
            return False
        begun = [(t, run) for t, run in rows(experiment) if t["status"] != "PENDING"]
        return has(
            experiment, "tuner.pkl", "experiment_state-*.json", "basic-variant-state-*.json"
        ) and all(
            has(experiment / t["relative_logdir"], *TRIAL_FILES)
            if "training_iteration" in run["last_result"]
            else _has_begun(experiment / t["relative_logdir"])
            for t, run in begun
        )
    except (OSError, ValueError):
        return False


def _has_begun(trial_dir: Path) -> bool:
    """Whether a trial that never reported anything has left what it will leave."""
    return has(trial_dir, "params.json", "params.pkl") and (trial_dir / "result.json").exists()


def _write_sweep(directory: Path, waits_while: str) -> Path:
    """Write a copy of the sweep whose trials stand still while something is true."""
    code = SWEEP.read_text()
    assert code.count(STEP) == 1
    wait = f"        while {waits_while}:\n            time.sleep(0.05)\n"
    script = directory / SWEEP.name
    script.write_text(code.replace(STEP, STEP + wait))
    return script


def _environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "TUNE_GLOBAL_CHECKPOINT_S": "1", **extra}


def _command(script: Path, storage_path: str | Path, name: str) -> list[str]:
    place = ["--storage-path", str(storage_path), "--name", name]
    return [sys.executable, str(script), *place]
