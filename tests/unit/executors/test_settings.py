"""The section [ray_executor]: what is read of it, and what is wrong with it, without its secrets."""

import json
import stat

import pytest
from airflow.executors.base_executor import ExecutorConf
from airflow.providers_manager import ProvidersManager

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.executors.settings import ExecutorSettings, read_settings
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.provider_info import get_provider_info
from airflow_tune_restore.version_compat import conf

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True, scope="module")
def _metadata():
    """Read what the metadata of providers has about their sections, as `airflow scheduler` does."""
    ProvidersManager().initialize_providers_configuration()


@pytest.fixture
def configure(monkeypatch):
    def configure(**options) -> ExecutorSettings:
        for key, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__RAY_EXECUTOR__{key.upper()}", value)
        return read_settings(ExecutorConf())

    return configure


@pytest.fixture
def connection(monkeypatch):
    """A connection `ray` with a runtime_env."""
    extra = {"runtime_env": {"env_vars": {"A": "1", "B": "1"}, "py_modules": ["s3://b/a.zip"]}}
    fields = {"conn_type": "ray_jobs", "host": "head", "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_RAY", json.dumps(fields))
    return extra["runtime_env"]


def test_an_address_is_enough(configure):
    settings = configure(address="ray-head")
    assert settings.cluster() == Cluster(address="http://ray-head:8265")
    assert (settings.num_cpus, settings.poll_interval, settings.delete_jobs) == (1.0, 2.0, True)


def test_all_of_it_is_read(configure):
    settings = configure(
        address="https://ray.example.com", token=f" {SECRET}\n", verify_tls="False", ca_file="/ca.pem",
        runtime_env='{"env_vars": {"A": "1"}}', num_cpus="0.5", poll_interval="10", delete_jobs="no",
    )  # fmt: skip
    place = Cluster(
        address="https://ray.example.com", token=SECRET, verify=False, ca_file="/ca.pem"
    )
    assert settings == ExecutorSettings(
        place=place,
        runtime_env={"env_vars": {"A": "1"}, "py_modules": []},
        num_cpus=0.5,
        poll_interval=10.0,
        delete_jobs=False,
    )
    assert settings.cluster() == place
    assert SECRET not in repr(settings)


@pytest.mark.usefixtures("connection")
def test_a_connection_has_the_cluster_and_the_runtime_env_below_that_of_the_section(configure):
    own = {"env_vars": {"B": "2"}, "py_modules": ["s3://b/b.zip"], "pip": ["x"]}
    settings = configure(ray_conn_id="ray", runtime_env=json.dumps(own))
    assert settings.cluster() == Cluster(address="http://head:8265", token=SECRET)
    assert settings.runtime_env == {
        "env_vars": {"A": "1", "B": "2"},
        "py_modules": ["s3://b/a.zip", "s3://b/b.zip"],
        "pip": ["x"],
    }


@pytest.mark.usefixtures("connection")
def test_a_new_token_of_the_connection_counts(configure, monkeypatch):
    settings = configure(ray_conn_id="ray")
    fields = {"conn_type": "ray_jobs", "host": "head", "password": "the new one"}
    monkeypatch.setenv("AIRFLOW_CONN_RAY", json.dumps(fields))
    assert settings.cluster().token == "the new one"


def test_the_token_may_come_from_a_command(configure, tmp_path, monkeypatch):
    command = tmp_path / "token"
    command.write_text(f"#!/bin/sh\necho {SECRET}\n")
    command.chmod(stat.S_IRWXU)
    monkeypatch.setenv("AIRFLOW__RAY_EXECUTOR__TOKEN_CMD", str(command))
    assert configure(address="head").cluster().token == SECRET


def test_what_a_failed_command_printed_is_not_shown(configure, tmp_path, monkeypatch):
    command = tmp_path / "token"
    command.write_text(f"#!/bin/sh\necho {SECRET}\nexit 1\n")
    command.chmod(stat.S_IRWXU)
    monkeypatch.setenv("AIRFLOW__RAY_EXECUTOR__TOKEN_CMD", str(command))
    with pytest.raises(
        InvalidInputError, match=r"\[ray_executor\] token cannot be read: "
    ) as error:
        configure(address="head")
    assert SECRET not in str(error.value)


def test_the_defaults_are_those_of_the_metadata(configure):
    options = get_provider_info()["config"]["ray_executor"]["options"]
    given = {name: option["default"] for name, option in options.items() if option["default"]}
    assert configure(address="head", **given) == configure(address="head")
    assert set(options) == {
        "ray_conn_id", "address", "token", "verify_tls", "ca_file", "runtime_env", "num_cpus",
        "poll_interval", "delete_jobs",
    }  # fmt: skip
    assert configure(runtime_env=options["runtime_env"]["example"]).runtime_env["env_vars"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "[ray_executor] ray_conn_id and address are not set. Set one of them: "),
        ({"address": "head", "ray_conn_id": "x"}, "ray_conn_id and address are both set. Set one of "),
        ({"address": "ray://head:10001"}, "[ray_executor] address: ray://head:10001 is not an address"),
        ({"address": "head", "token": f"{SECRET}\nx"}, "or token in [ray_executor]."),
        ({"address": "head", "verify_tls": "perhaps"}, "[ray_executor] verify_tls='perhaps' is neither"),
        ({"address": "head", "delete_jobs": "x"}, "[ray_executor] delete_jobs='x' is neither true nor"),
        ({"address": "head", "num_cpus": "-1"}, "[ray_executor] num_cpus = -1 is not a number of 0 or "),
        ({"address": "head", "num_cpus": "nan"}, "num_cpus = nan is not a number of 0 or more. Write it"),
        ({"address": "head", "poll_interval": "0"}, "[ray_executor] poll_interval = 0 is not a number"),
        ({"address": "head", "poll_interval": "inf"}, "poll_interval = inf is not a number of 0.1 or"),
        ({"address": "head", "poll_interval": "2 s"}, "poll_interval = 2 s is not a number of 0.1 or"),
        ({"ray_conn_id": "none"}, "[ray_executor] ray_conn_id: Airflow has no connection 'none'. "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_key(configure, options, words):
    with pytest.raises(InvalidInputError) as error:
        configure(**options)
    assert words in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("runtime_env", "words"),
    [
        (f"A={SECRET}", " is not a JSON object. Write it like"),
        ("[" * 100_000, " is not a JSON object. Write it like"),
        ("[]", " is not a JSON object. Write it like"),
        ('{"env_vars": {"A": 1}}', ": env_vars in the runtime_env is not an object of strings."),
        ('{"env_vars": {"%s": 1}}' % SECRET, "is not an object of strings."),  # noqa: UP031
        (
            '{"py_modules": "s3://b/a.zip"}',
            ": py_modules='s3://b/a.zip' in the runtime_env is not a",
        ),
        (
            '{"py_modules": ["/opt/code"]}',
            ": py_modules has the local path /opt/code, which the exec",
        ),
        (
            '{"working_dir": "."}',
            ": working_dir has the local path ., which the executor does not send",
        ),
        ('{"pip": [NaN]}', " cannot be sent as JSON"),
        ('{"pip": ["\\ud800"]}', " cannot be sent as JSON"),
    ],
)
def test_a_runtime_env_that_no_job_could_have_is_refused(configure, runtime_env, words):
    with pytest.raises(InvalidInputError) as error:
        configure(address="head", runtime_env=runtime_env)
    assert f"[ray_executor] runtime_env{words}" in str(error.value) or words in str(error.value)
    assert SECRET not in str(error.value)


def test_a_local_path_of_the_connection_is_refused_with_its_name(configure, monkeypatch):
    extra = {"runtime_env": {"working_dir": "/opt/train"}}
    fields = {"conn_type": "ray_jobs", "host": "head", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_RAY", json.dumps(fields))
    with pytest.raises(InvalidInputError, match="runtime_env of connection 'ray': working_dir has"):
        configure(ray_conn_id="ray")


def test_a_percent_sign_in_the_file_is_explained():
    parser = type(conf)()
    parser.read_string(f"[ray_executor]\naddress = head\ntoken = {SECRET}%x\n")
    with pytest.raises(
        InvalidInputError, match=r"\[ray_executor\] token: write %% for each %"
    ) as error:
        read_settings(parser)
    assert SECRET not in str(error.value)
