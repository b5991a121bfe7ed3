"""What is posted for an attempt."""

import json

from airflow_tune_restore.launch.ray.submission import DriverResources, build_submission
from airflow_tune_restore.protocol.ray_job import submission_id
from airflow_tune_restore.protocol.request import RunnerRequest

REQUEST = RunnerRequest(
    experiment="s3://bucket/my sweep",
    restore_id="r1",
    trial_id="a b/1",
    attempt=2,
    trainable="m:t",
    trainable_name="t",
    action="resume",
)


def test_a_job_is_the_runner_with_room_for_its_snapshot(packages):
    posted = build_submission(
        packages,
        REQUEST,
        runtime_env={"env_vars": {"A": "1", "B": "1"}},
        env={"B": "2"},
        driver=DriverResources(num_cpus=0.5, resources={"spot": 0.1}),
    )
    assert posted["entrypoint"] == (
        "exec python -m airflow_tune_restore.runner run --experiment 's3://bucket/my sweep' "
        "--request .tune_restore/r1/trials/a%20b%2F1/attempts/000002/request.json"
    )
    env = posted["runtime_env"]["env_vars"]
    assert env == {"RAY_JOB_STOP_WAIT_TIME_S": "60", "A": "1", "B": "2"}
    assert len(posted["runtime_env"]["py_modules"]) == 1
    assert posted["entrypoint_num_cpus"] == 0.5
    assert posted["entrypoint_memory"] == 512 * 1024**2
    assert posted["entrypoint_resources"] == {"spot": 0.1}
    json.dumps(posted)


def test_a_driver_may_ask_for_nothing(packages):
    posted = build_submission(
        packages, REQUEST, runtime_env={}, env={}, driver=DriverResources(memory=0)
    )
    assert not [name for name in posted if name.startswith("entrypoint_")]


def test_an_id_is_of_one_attempt_alone_and_fits_into_a_path():
    ids = {
        submission_id(experiment, restore, trial, attempt)
        for experiment in ("s3://a", "s3://b")
        for restore in ("r1", "r2")
        for trial in ("a b/1", "*", "**", "a-b-1")
        for attempt in (1, 2)
    }
    assert len(ids) == 32
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in ids)
    assert submission_id("s3://a", "r1", "a", 1) == submission_id("s3://a", "r1", "a", 1)
