"""Short trials that share a driver under a real `airflow standalone`, with real Ray."""

from tests.support.airflow.trial_tasks import TRIAL, one_that_reports, runners_of
from tests.support.experiments.sweeps import copy_failed_trials, ends

NIGHTLY, COUNT = "nightly_recovery", 6


def test_six_short_trials_have_one_driver_and_a_task_each_and_a_killed_task_stops_its_trial_alone(
    running, gates, tmp_path
):
    experiment = copy_failed_trials(tmp_path / "six_short", COUNT)
    gates.close("six_short")
    run_id = running.trigger(NIGHTLY, {"prefix": str(tmp_path), "stale_after": 0})
    victim = running.eventually(lambda: one_that_waits(running, run_id))
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


def one_that_waits(running, run_id: str) -> dict | None:
    """Return the task of a trial that attached to the driver, and shows where its output is."""
    task = one_that_reports(running, NIGHTLY, run_id)
    if task is None:
        return None
    log = running.whole_log(NIGHTLY, run_id, TRIAL, task["map_index"])
    return task if "in a driver that several trials share" in log else None
