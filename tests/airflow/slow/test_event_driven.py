"""The event-driven DAG and living sweeps on S3: one is killed while watched, and so is the triggerer."""

from datetime import datetime

import pytest

from tests.support.experiments.sweeps import copy_dag, kill, start_sweep, statuses_in

DAG, PLACE = "watches_the_living", "experiments/living"
STALE_AFTER = 40.0


@pytest.fixture
def sweeps(seaweed):
    """Starts sweeps, whose first trials have then reported or only begun."""
    started, store = [], seaweed.filesystem()

    def start(name: str, seconds: float, *, reported: bool):
        driver = start_sweep(
            f"s3://{PLACE}",
            name,
            seconds=seconds,
            until=lambda: any(i or not reported for _, i in iterations(store, name)),
            **seaweed.env,
        )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        kill(driver)


def test_a_sweep_killed_while_it_is_watched_is_recovered_once_and_a_live_one_is_let_alone(
    running, seaweed, sweeps
):
    store = seaweed.filesystem()
    copy_dag(
        running.dags,
        "event_driven_recovery",
        DAG,
        TUNE_RESTORE_PREFIX=f"s3://seaweed@{PLACE}",
        TUNE_RESTORE_STALE_AFTER=str(STALE_AFTER),
        TUNE_RESTORE_POLL="15",
    )
    running.unpause(DAG)
    running.parse(DAG)
    alive = sweeps("alive", seconds=600.0, reported=False)
    kill(sweeps("dying", seconds=2.0, reported=True))
    running.kill_triggerer()
    files = store.find(f"{PLACE}/dying", detail=True).values()
    died_at = max(file["LastModified"].timestamp() for file in files)
    running.start("triggerer")

    # Airflow 3.3.2 answers 500 when asked for events whose DAG run has not begun
    running.eventually(lambda: [run for run in running.runs(DAG) if run["start_date"]])
    (event,) = asset_events(running)
    silent = datetime.fromisoformat(event["timestamp"]).timestamp() - died_at
    assert silent > STALE_AFTER - 1  # the store tells whole seconds
    assert event["extra"]["payload"]["experiments"] == [f"s3://seaweed@{PLACE}/dying"]

    running.eventually(lambda: running.remembered(f"of_{DAG}"))  # what it has reported
    running.restart_triggerer()
    (run,) = running.runs(DAG)
    assert running.finish(DAG, run["dag_run_id"]) == "success", running.log_tail()
    assert iterations(store, "dying") == [("TERMINATED", 6)] * 4
    assert len(store.glob(f"{PLACE}/dying/experiment_state-*_r*.json")) == 1

    seen = running.polls(PLACE)
    running.eventually(lambda: running.polls(PLACE) >= seen + 3)
    assert len(running.runs(DAG)) == 1
    assert [e["extra"] for e in asset_events(running)] == [event["extra"]]
    assert alive.poll() is None
    assert not store.exists(f"{PLACE}/alive/.tune_restore")
    log = running.task_log(DAG, run["dag_run_id"], "restore.find")
    assert "newest write to its root" in log
    running.pause(DAG)


def asset_events(running) -> list[dict]:
    return running.asset_events(f"of_{DAG}")


def iterations(store, name: str) -> list[tuple[str, int]]:
    states = store.glob(f"{PLACE}/{name}/experiment_state-*.json")
    return statuses_in(store.cat_file(max(states))) if states else []
