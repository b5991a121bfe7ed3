"""Connections of type `ray_jobs`, and the Ray jobs that count as the driver of an experiment."""

import json

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook, find_driver
from airflow_tune_restore.launch.ray.jobs_api import RayJob
from airflow_tune_restore.provider_info import get_provider_info

EXPERIMENT = "s3://bucket/sweeps/lr-sweep_7"


def hook(monkeypatch, **fields) -> RayJobsHook:
    connection = {"conn_type": "ray_jobs", "host": "head", **fields}
    monkeypatch.setenv("AIRFLOW_CONN_RAY", json.dumps(connection))
    return RayJobsHook("ray")


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({}, "http://head:8265"),
        ({"host": "http://head:9000"}, "http://head:9000"),
        ({"port": 9000}, "http://head:9000"),
        ({"host": "https://ray.example.com"}, "https://ray.example.com"),
        ({"host": "https://ray.example.com", "port": 8443}, "https://ray.example.com:8443"),
        ({"host": "ray.example.com", "schema": "https"}, "https://ray.example.com"),
    ],
)
def test_the_address_may_be_written_in_many_ways(monkeypatch, fields, address):
    assert hook(monkeypatch, **fields).cluster().address == address


def test_defaults_come_from_the_connection_and_ours_last(monkeypatch):
    extra = {
        "runtime_env": '{"pip": ["x"]}',
        "entrypoint_num_cpus": 0.5,
        "entrypoint_resources": {"spot": 1},
    }
    ray = hook(monkeypatch, extra=extra, password="t0ken")
    assert ray.runtime_env() == {"pip": ["x"]}
    driver = ray.driver_resources(num_cpus=2)
    assert (driver.num_cpus, driver.memory, driver.resources) == (2.0, 512 * 1024**2, {"spot": 1.0})
    assert ray.driver_resources(memory=0).memory == 0
    assert ray.driver_resources().num_cpus == 0.5
    assert ray.cluster().token == "t0ken"
    assert ray.cluster().verify is True


def test_tls_may_be_left_unchecked_or_given_an_authority(monkeypatch):
    extra = {"verify_tls": False, "ca_file": "/certs/ca.pem"}
    cluster = hook(monkeypatch, extra=extra).cluster()
    assert (cluster.verify, cluster.ca_file) == (False, "/certs/ca.pem")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"runtime_env": "no json"}, "runtime_env of connection 'ray' is not a JSON object"),
        ({"entrypoint_num_cpus": "many"}, "entrypoint_num_cpus='many' is not a number"),
        ({"entrypoint_num_cpus": 10**400}, "is not a number"),
        ({"entrypoint_memory": 10**400}, "is not a number of bytes"),
        ({"entrypoint_memory": -1}, "entrypoint_memory=-1 is not an amount of memory"),
        ({"entrypoint_resources": {"a": float("inf")}}, "is not an amount"),
        ({"verify_tls": "perhaps"}, "verify_tls='perhaps' is neither"),
    ],
)
def test_the_button_says_what_is_wrong(monkeypatch, extra, words):
    ray = hook(monkeypatch, extra=extra)

    class Jobs:
        def __init__(self, cluster):
            self.cluster = cluster

        def version(self):
            return "2.60.0"

    monkeypatch.setattr("airflow_tune_restore.hooks.ray_jobs.RayJobs", Jobs)
    works, said = ray.test_connection()
    assert not works
    assert words in said


def test_a_connection_that_is_not_there_is_named():
    with pytest.raises(InvalidInputError, match="Airflow has no connection 'ray_of_nobody'"):
        RayJobsHook("ray_of_nobody").cluster()


def test_the_form_in_the_ui_has_every_field_the_hook_reads():
    (form,) = [
        one
        for one in get_provider_info()["connection-types"]
        if one["connection-type"] == "ray_jobs"
    ]
    assert form["hook-class-name"].endswith(".hooks.ray_jobs.RayJobsHook")
    assert set(form["conn-fields"]) == {
        "verify_tls",
        "ca_file",
        "runtime_env",
        "entrypoint_num_cpus",
        "entrypoint_memory",
        "entrypoint_resources",
    }


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
    assert find_driver([job], EXPERIMENT).is_running is is_its_driver


def test_the_options_of_an_address_are_no_part_of_its_name():
    address = f"{EXPERIMENT}?endpoint_override=http://host:1/minio"
    for words, is_its_driver in {
        "--name lr-sweep_7": True,
        EXPERIMENT: True,
        "minio": False,
    }.items():
        job = RayJob(submission_id="j1", status="RUNNING", entrypoint=f"python a.py {words}")
        assert find_driver([job], address).is_running is is_its_driver


def test_a_short_name_must_be_given_with_its_address():
    job = RayJob(submission_id="j1", status="RUNNING", entrypoint="python -m a --lr 1")
    assert not find_driver([job], "/sweeps/a").is_running
    job = RayJob(submission_id="j1", status="RUNNING", entrypoint="python -m x /sweeps/a")
    assert find_driver([job], "/sweeps/a").is_running


def test_the_job_of_a_restore_counts_for_its_experiment_and_no_other_of_that_name():
    command = (
        "exec python -m airflow_tune_restore.runner run --experiment s3://b/one/sweep --request r"
    )
    job = RayJob(submission_id="tune-restore-t1-1-0123", status="RUNNING", entrypoint=command)
    assert find_driver([job], "s3://b/one/sweep").is_running
    assert not find_driver([job], "s3://b/two/sweep").is_running


def test_a_task_of_airflow_with_the_name_of_an_experiment_is_not_its_driver():
    names = {"dag_id": "mnist_sweep", "task_id": "scan"}
    job = RayJob(submission_id="airflow-0b7c", status="RUNNING", metadata=names)
    assert not find_driver([job], "s3://b/mnist_sweep").is_running


def test_no_answer_decides_nothing_and_is_reported():
    status = find_driver("no route", EXPERIMENT)
    assert not status.is_running
    assert status.found == "the cluster could not be asked: no route"
