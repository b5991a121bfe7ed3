"""Short trials that share a driver under a real `airflow standalone`, with real Ray."""

from pathlib import Path

from tests.support.airflow.trial_tasks import TRIAL, runners_of
from tests.support.experiments.sweeps import copy_failed_trials, ends

NIGHTLY, COUNT = "nightly_recovery", 6


def test_six_short_trials_have_one_driver_and_a_task_each_and_a_killed_task_stops_its_trial_alone(
    running, gates, tmp_path
):
    experiment = copy_failed_trials(tmp_path / "six_short", COUNT)
    gates.close("six_short")
    run_id = running.trigger(NIGHTLY, {"prefix": str(tmp_path), "stale_after": 0})
    victim = running.eventually(lambda: one_that_waits(running, run_id, experiment))
    (driver,) = runners_of(experiment)
    place = f"dagRuns/{run_id}/taskInstances/{TRIAL}/{victim['map_index']}"
    running.call("PATCH", f"/api/v2/dags/{NIGHTLY}/{place}", {"new_state": "failed"})
    outcomes = ".tune_restore/*/trials/*/attempts/*/outcome.json"
    (stopped,) = running.eventually(lambda: list(experiment.glob(outcomes)))
    assert '"interrupted"' in stopped.read_text()
    assert runners_of(experiment) == [driver]
    gates.open("six_short")
    assert running.finish(NIGHTLY, run_id) == "failed"
    assert sorted(running.states(NIGHTLY, run_id)[TRIAL]) == ["failed"] + ["success"] * 5
    assert len(list(experiment.glob(".tune_restore/*/shared/attempts/*"))) == 1
    assert len(list(experiment.glob(".tune_restore/*/trials/*/attempts/*"))) == COUNT
    found = sorted(ends(experiment))
    assert found[1:] == [("TERMINATED", 6)] * 5 or found[:-1] == [("TERMINATED", 6)] * 5
    running.eventually(lambda: not runners_of(experiment))
    logs = [running.task_log(NIGHTLY, run_id, TRIAL, number) for number in range(COUNT)]
    assert sum("Starting shared driver 1." in log for log in logs) == 1
    assert all("in a driver that several trials share" in log for log in logs)
    assert sum("iteration 6, " in log for log in logs) == 5
    log = logs[victim["map_index"]]
    assert "Asking the run to stop this trial; the others continue." in log
    # the next night takes the one that was stopped
    next_id = running.trigger(NIGHTLY, {"prefix": str(tmp_path), "stale_after": 0})
    assert running.finish(NIGHTLY, next_id) == "success", running.log_tail()
    assert ends(experiment) == [("TERMINATED", 6)] * COUNT


def one_that_waits(running, run_id: str, experiment: Path) -> dict | None:
    """Return the task of a trial that the driver has begun; it stands still at the gate."""
    begun = experiment.glob(".tune_restore/*/trials/*/attempts/000001/heartbeat.json")
    names = {path.parts[-4] for path in begun}
    tasks = [t for t in running.tasks(NIGHTLY, run_id) if t["task_id"] == TRIAL]
    alive = [t for t in tasks if t["state"] == "running" and t["rendered_map_index"]]
    return next((t for t in alive if t["rendered_map_index"].split()[1] in names), None)
