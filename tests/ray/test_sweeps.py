"""A sweep's own script with a real Ray: stopped with a last snapshot, and restored from there."""

import json
import os
import signal

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split

import pytest

from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import EXIT_INTERRUPTED
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.sweep import start_sweep
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.sweeps import Gates, copy_dags, ends
from tests.support.waiting import eventually


@pytest.fixture
def gates(tmp_path):
    """Trials stand still before iteration 4."""
    gates = Gates(tmp_path / "gates")
    gates.directory.mkdir()
    gates.close("exp")
    return gates


def test_a_stopped_script_saves_what_its_trials_have_reported(gates, tmp_path):
    """Ray Tune would save no state for an hour: the last snapshot alone has all of it."""
    (tmp_path / "dags").mkdir()
    script = copy_dags(tmp_path / "dags", gates) / "example_sweep.py"
    experiment = tmp_path / "sweeps" / "exp"
    store = open_store(str(experiment))
    plan = start_sweep(store, "night", holder="test", ttl_seconds=60)
    settings = RunnerSettings(trainable="x:y", entrypoint=f"python {script}")
    request = claim_attempt(store, plan, layout.WHOLE_EXPERIMENT, settings)
    env = {"TUNE_GLOBAL_CHECKPOINT_S": "3600", "EXAMPLE_SWEEP_REPAIRED": "1"}
    process = LocalLauncher(env=env).start(request)

    def iterations():
        paths = experiment.glob("*/result.json")
        return sorted(len(path.read_text().splitlines()) for path in paths)

    def checkpoints():
        return len(list(experiment.glob("*/checkpoint_000002/state.json")))

    eventually(lambda: checkpoints() == 2)  # noqa: PLR2004  both trials have reported three times
    os.kill(process.pid, signal.SIGTERM)
    output = []
    for line in process.lines():
        output.append(line)
        if "Stop signal received" in line:
            gates.open("exp")  # Ray would wait ten seconds for a trial that stands still
    assert process.wait() == EXIT_INTERRUPTED, output
    assert not (gates.directory / "exp").exists(), output
    outcome = AttemptRecords.of(store, request).outcome(1)
    assert outcome.result == "interrupted"
    # the third result may still have been on its way to the driver
    assert [status for status, _ in ends(experiment)] == ["RUNNING", "RUNNING"]
    assert {iteration for _, iteration in ends(experiment)} <= {2, 3}
    assert iterations() == [iteration for _, iteration in ends(experiment)]
    rows = json.loads(max(experiment.glob("experiment_state-*.json")).read_text())["trial_data"]
    assert len(rows) == 2  # noqa: PLR2004
    assert _members(process.pid) == []
