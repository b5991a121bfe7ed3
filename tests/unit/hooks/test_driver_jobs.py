"""Which Ray jobs count as the driver of an experiment; the real cluster is in tests/ray."""

import pytest

from airflow_tune_restore.hooks.driver_jobs import read_jobs
from airflow_tune_restore.launch.ray.jobs_api import RayJob

EXPERIMENT = "s3://bucket/sweeps/lr-sweep_7"


@pytest.mark.parametrize(
    ("entrypoint", "metadata", "is_its_driver"),
    [
        ("python sweep.py --storage s3://bucket/sweeps --name lr-sweep_7", None, True),
        ("python sweep.py --name=lr-sweep_7", None, True),
        ("python sweep.py 'lr-sweep_7'", None, True),
        ("python sweep.py --name lr-sweep_77", None, False),
        ("python sweep.py --name my-lr-sweep_7", None, False),
        ("python sweep.py --name lr-sweep_7.bak", None, False),
        ("python sweep.py", {"experiment": EXPERIMENT}, True),
        ("python sweep.py", {"experiment": f"{EXPERIMENT}/"}, True),
        ("python sweep.py", {"experiment": "s3://bucket/sweeps/lr-sweep_71"}, False),
        ("python sweep.py", {"lr-sweep_7": "x"}, False),
        ("python sweep.py", None, False),
    ],
)
def test_a_job_is_its_driver_if_it_names_it(entrypoint, metadata, is_its_driver):
    job = RayJob(submission_id="j1", status="RUNNING", entrypoint=entrypoint, metadata=metadata)
    assert read_jobs([job], EXPERIMENT).is_running is is_its_driver


def test_the_options_of_an_address_are_no_part_of_its_name():
    address = f"{EXPERIMENT}?endpoint_override=http://host:1/minio"
    for words, is_its_driver in {
        "--name lr-sweep_7": True,
        EXPERIMENT: True,
        "minio": False,
    }.items():
        job = RayJob(submission_id="j1", status="RUNNING", entrypoint=f"python a.py {words}")
        assert read_jobs([job], address).is_running is is_its_driver


def test_a_short_name_must_be_given_with_its_address():
    job = RayJob(submission_id="j1", status="RUNNING", entrypoint="python -m a --lr 1")
    assert not read_jobs([job], "/sweeps/a").is_running
    job = RayJob(submission_id="j1", status="RUNNING", entrypoint="python -m x /sweeps/a")
    assert read_jobs([job], "/sweeps/a").is_running


def test_a_job_of_ours_speaks_for_the_experiment_it_restores_and_no_other_of_its_name():
    command = (
        "exec python -m airflow_tune_restore.runner run --experiment s3://b/one/sweep --request r"
    )
    job = RayJob(submission_id="tune-restore-t1-1-0123", status="RUNNING", entrypoint=command)
    assert read_jobs([job], "s3://b/one/sweep").is_running
    assert not read_jobs([job], "s3://b/two/sweep").is_running


def test_no_answer_decides_nothing_and_is_said():
    sign = read_jobs("no route", EXPERIMENT)
    assert not sign.is_running
    assert sign.found == "the cluster could not be asked: no route"
