"""What a private Ray of a runner starts, and what works without the rest."""

import json
import os
import subprocess
import sys

from airflow_tune_restore.launch.process import kill_session
from tests.support import ROOT
from tests.support.waiting import PATIENCE_SECONDS, eventually

PROGRAM = """
import json, os, sys
from pathlib import Path
import ray
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import ray_session
from airflow_tune_restore.launch.process import _members

def ask():
    print("a worker speaks")
    return os.environ["OF_THE_TRIAL"]

request = RunnerRequest(
    experiment="e", restore_id="r", trial_id="t", attempt=1, trainable="m:t", trainable_name="t",
    action="resume", runtime_env={"env_vars": {"OF_THE_JOB": "1"}},
)
ray_session.connect(request, {"CPU": 1.0})
asked = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OF_THE_TRIAL": "2"}})(ask).remote()
answer = ray.get(asked)
commands = [Path(f"/proc/{pid}/cmdline").read_text().split("\\0") for pid in _members(os.getsid(0))]
print("seen:", json.dumps({"answer": answer, "commands": commands}), flush=True)
sys.stdin.read()  # until the worker's line has arrived, too
ray.shutdown()
"""


def test_a_private_ray_has_no_dashboard_and_no_autoscaler_and_its_workers_print(tmp_path):
    output = tmp_path / "output"
    with output.open("w") as out:
        driver = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": ROOT.as_posix()},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(lambda: "a worker speaks" in (text := output.read_text()) and "seen: " in text)
        driver.communicate(timeout=PATIENCE_SECONDS)
    finally:
        if driver.returncode is None:
            kill_session(driver.pid)
    (line,) = [one for one in output.read_text().splitlines() if one.startswith("seen: ")]
    seen = json.loads(line.removeprefix("seen: "))
    assert seen["answer"] == "2"  # the environment of a trial needs Ray's agent
    programs = {os.path.basename(word) for words in seen["commands"] for word in words}  # noqa: PTH119
    assert programs >= {"gcs_server", "raylet", "log_monitor.py"}
    assert not programs & {"dashboard.py", "monitor.py"}
