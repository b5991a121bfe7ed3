"""An address that is one level too high or too low, or names an Airflow connection."""

import json
import os
import subprocess
import sys

import pytest

from airflow_tune_restore.cli import places
from airflow_tune_restore.exceptions import InvalidInputError
from tests.support.experiments.built import make_experiment, make_row

BAD = make_row("bad", status="ERROR", error=True)
COMMANDS = [
    ("plan",),
    ("restore", "--trainable", "m:t"),
    ("release", "bad"),
    ("undo", "--yes"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_prefix_in_place_of_an_experiment_names_scan(tune_restore, tmp_path, command):
    make_experiment(tmp_path / "my sweeps" / "team" / "exp", [BAD])
    name, *more = command
    code, out, err = tune_restore(name, tmp_path / "my sweeps", *more)
    assert (code, out) == (2, "")
    prefix = tmp_path / "my sweeps"
    assert err == (
        f"error: {prefix} is not an experiment, but experiments lie below it, such as team/exp. "
        f"`tune-restore scan '{prefix}'` lists them.\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_directory_inside_an_experiment_names_the_experiment(tune_restore, tmp_path, command):
    experiment = make_experiment(tmp_path / "exp", [BAD])
    inside = experiment / "dir_bad" / "checkpoint_000001"
    inside.mkdir(parents=True)
    name, *more = command
    code, out, err = tune_restore(name, inside, *more)
    assert (code, out) == (2, "")
    assert (
        f"{inside} lies inside the experiment {experiment}. Give {experiment} in its place." in err
    )


def test_a_scan_inside_an_experiment_names_it(tune_restore, tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path / "exp", [BAD])
    (experiment / "dir_bad").mkdir()
    monkeypatch.chdir(experiment)
    code, out, _ = tune_restore("scan", "dir_bad")
    assert code == 0
    assert f"It lies inside {experiment}: `tune-restore scan {experiment}`." in out
    assert tune_restore("scan", "dir_bad", "--json")[:2] == (0, "[]\n")


def test_a_directory_without_any_experiment_is_refused_as_before(tune_restore, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    code, _, err = tune_restore("plan", tmp_path)
    assert code == 2
    assert "neither a tuner.pkl nor an experiment state" in err


def test_few_directories_are_listed_to_find_an_experiment(tmp_path, monkeypatch):
    for number in range(100):
        (tmp_path / f"d{number:03}" / "empty").mkdir(parents=True)
    make_experiment(tmp_path / "z", [BAD])
    assert places.open_experiment(str(tmp_path)).uri == str(tmp_path)  # refused where it is read


@pytest.fixture
def minio(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    fields = {
        "conn_type": "aws",
        "login": "its-key",
        "password": "its-secret",
        "extra": {"endpoint_url": "http://127.0.0.1:9"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_MINIO", json.dumps(fields))


def test_a_connection_opens_the_store_and_gives_runners_its_credentials(minio):
    store = places.open_place("s3://minio@bucket/exp")
    assert store.uri == "s3://bucket/exp"
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ
    with places.runner_credentials("s3://minio@bucket/exp") as store_env:
        assert store_env == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}  # for Ray jobs: no secret
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == "its-secret"
        assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ


def test_without_a_connection_the_environment_stays_as_it_is():
    before = dict(os.environ)
    with places.runner_credentials("s3://bucket/exp"):
        assert dict(os.environ) == before


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(InvalidInputError, match="a user and a password") as refused:
        places.open_place("s3://user:secret@bucket/exp")
    assert "secret" not in str(refused.value)


def test_without_airflow_one_sentence_tells_what_to_do():
    code = (
        "import sys; sys.modules['airflow'] = None\n"
        "from airflow_tune_restore.cli.app import main\n"
        "sys.argv = ['tune-restore', 'plan', 's3://secret@bucket/exp']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: s3://…@… names an Airflow connection, and Airflow cannot be imported"
    )
    assert "leave out the part before '@'" in line
    assert "secret" not in line


@pytest.mark.parametrize("command", ["plan", "restore", "undo"])
def test_a_path_that_does_not_exist_is_named_in_one_sentence(tune_restore, tmp_path, command):
    needed = ("--trainable", "m:t") if command == "restore" else ()
    code, _, err = tune_restore(command, tmp_path / "nothing", *needed)
    assert (code, err) == (2, f"error: {tmp_path / 'nothing'} does not exist.\n")
