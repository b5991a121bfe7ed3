"""A sweep that Ray 2.60 left behind, with hostile names, and one of its failed trials restored."""

import json
import shutil
from pathlib import Path

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.storage.fs import open_store
from tests.support import GOLDEN
from tests.support.records import leave_attempt, start_night

KILLED = GOLDEN / "ray-2.60.0" / "killed"
RESUMED = "8fbbf_00001"
"""It failed after iteration 2, and now has six."""

MARKUP = "<img src=x onerror=alert(1)>"
ENDING = "</script><script>alert(2)</script><!--"


def make_restored(directory: Path) -> Path:
    """Write the sweep below a directory; its name, a parameter and an error text are hostile."""
    experiment = directory / MARKUP
    shutil.copytree(KILLED, experiment)
    state = next(experiment.glob("experiment_state-*.json"))
    state.write_text(state.read_text().replace(r"\"hangs\"", rf"\"{MARKUP}\""))
    (failed,) = experiment.glob(f"train_{RESUMED}_*")
    (failed / "error.txt").write_text(f"RuntimeError: {ENDING}\n")

    store = open_store(str(experiment))
    plan = start_night(store, "r1")
    with (failed / "result.json").open("a") as results:
        for iteration in range(3, 7):
            row = {"score": 3 * iteration, "training_iteration": iteration, "trial_id": RESUMED}
            times = {"timestamp": 1795470000 + iteration, "time_total_s": float(iteration)}
            results.write(json.dumps({**row, **times}) + "\n")
    leave_attempt(store, plan, RESUMED, _finished(state), iteration=6)
    commit_restore(store, "r1")
    return experiment


def _finished(state: Path) -> list[str]:
    """Return the row of the restored trial as its runner leaves it."""
    rows = json.loads(state.read_text())["trial_data"]
    (row,) = [each for each in rows if json.loads(each[0])["trial_id"] == RESUMED]
    trial, metadata = json.loads(row[0]), json.loads(row[1])
    metadata["last_result"] |= {"score": 18, "training_iteration": 6}
    metadata["last_result_time"] = 1795470006.0
    return [json.dumps({**trial, "status": "TERMINATED"}), json.dumps(metadata)]
