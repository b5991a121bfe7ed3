"""Addresses, and what a connection means to a runner."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks import experiment_storage
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.location import Location
from tests.support import ROOT

CANARY = "canary-7c1f-secret"


def connect(monkeypatch, conn_id: str, **fields) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "uri", "conn_id"),
    [
        ("s3://minio@bucket/a/b", "s3://bucket/a/b", "minio"),
        ("s3://bucket/a/b", "s3://bucket/a/b", None),
        ("gs://my-conn@bucket", "gs://bucket", "my-conn"),
        ("/data/tune", "/data/tune", None),
        ("file:///data/tune", "file:///data/tune", None),
        ("/data/a@b/x", "/data/a@b/x", None),
        ("/data/a?region=x", "/data/a?region=x", None),
        ("s3://minio@bucket/a?region=x", "s3://bucket/a?region=x", "minio"),
        ("s3://bucket?region=x&scheme=http", "s3://bucket?region=x&scheme=http", None),
    ],
)
def test_an_address_is_a_uri_and_a_connection(text, uri, conn_id):
    address = Address.parse(text)
    assert (address.uri, address.conn_id) == (uri, conn_id)
    assert str(address) == text


keys = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1).filter(
    lambda key: not Location.parse(f"s3://bucket/{key}").options
)


@given(keys, st.sampled_from([None, "minio", "my-conn"]))
@example("x?", "minio")
@example("x#", "minio")
@example("tail ", None)
@example(" lead", None)
@example("a%20b+c;d@e:f", "minio")
@example("/two//slashes/", None)
def test_no_character_of_a_key_is_lost_on_the_way_from_task_to_task(key, conn_id):
    found = Address("s3://bucket", conn_id).at(f"s3://bucket/{key}")
    assert Address.parse(str(found)) == found
    assert Address.parse(f"s3://bucket/{key}", storage_conn_id=conn_id) == found


@given(keys)
@example("tail ")
@example("a@b")
@example("a://b")
@example("s3://who@bucket/x")
@example("://")
def test_no_character_of_a_local_path_is_lost(key):
    found = Address.parse(open_store(f"/sweeps/{key}").uri)
    assert open_store(Address.parse(str(found)).uri).uri == found.uri


def test_a_memory_of_odd_names_is_opened_where_it_was_found():
    """From a scan's report to the store of the plan: one name, not another experiment's."""
    for name in ("exp", "exp ", "exp?", "exp#", "exp%20", "exp\t"):
        found = open_store("memory://odd").at(name)
        opened = ExperimentStorageHook().open(str(Address("memory://odd").at(found.uri)))
        assert opened.uri == f"memory://odd/{name}"


def test_a_scheme_may_be_written_large():
    assert str(Address.parse("S3://minio@bucket/A")) == "s3://minio@bucket/A"


@pytest.mark.parametrize("text", ["s3://bucket/a\n", "\n/data/tune", "s3://minio@bucket/a\r\nb"])
def test_an_address_of_two_lines_is_refused(text):
    with pytest.raises(InvalidInputError, match="line break"):
        Address.parse(text)


def test_an_argument_wins_over_the_connection_in_the_address():
    assert str(Address.parse("s3://one@bucket/a", storage_conn_id="two")) == "s3://two@bucket/a"


def test_an_experiment_found_behind_a_connection_keeps_it():
    found = Address.parse("s3://minio@bucket/a").at("s3://bucket/a/exp")
    assert str(found) == "s3://minio@bucket/a/exp"
    found = Address.parse("s3://minio@bucket/a?region=x").at("s3://bucket/a/exp?region=x")
    assert str(found) == "s3://minio@bucket/a/exp?region=x"


@pytest.mark.parametrize("odd", ["", "?", "#", " ", "@", "\n"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(odd):
    with pytest.raises(InvalidInputError, match="a user and a password") as error:
        Address.parse(f"s3://key:{odd}{CANARY}{odd}@bucket/a")
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("secret", [f"?{CANARY}=", f"{CANARY}?region=", f"?region={CANARY}"])
def test_a_secret_that_looks_like_options_is_refused_and_not_repeated(secret):
    with pytest.raises(InvalidInputError, match="credentials") as error:
        Address.parse(f"s3://key:{secret}@bucket/a")
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("text", ["", "  ", None, 7])
def test_an_address_must_be_text(text):
    with pytest.raises(InvalidInputError, match="must be a path or a URL"):
        Address.parse(text)


def test_a_local_path_takes_no_connection():
    with pytest.raises(InvalidInputError, match="local path"):
        Address.parse("/data", storage_conn_id="minio")


def test_a_local_path_opens(tmp_path):
    assert ExperimentStorageHook().open(tmp_path.as_posix()).uri == tmp_path.as_posix()


def test_a_connection_that_is_missing_is_named():
    with pytest.raises(InvalidInputError, match="no connection 'nowhere'"):
        ExperimentStorageHook().open("s3://nowhere@bucket/a")


@pytest.mark.parametrize(
    ("uri", "provider", "install"),
    [
        ("s3://there@b/k", "amazon", "'airflow-tune-restore[amazon]'"),
        ("s3a://there@b/k", "amazon", "'airflow-tune-restore[amazon]'"),
        ("gs://there@b/k", "google", "'airflow-tune-restore[gcs]' apache-airflow-providers-google"),
        (
            "abfs://there@b/k",
            "microsoft-azure",
            "'airflow-tune-restore[azure]' apache-airflow-providers-microsoft-azure",
        ),
    ],
)
def test_a_provider_that_is_missing_is_named_with_what_brings_it(
    monkeypatch, uri, provider, install
):
    from airflow.sdk import io

    def get_fs(scheme, conn_id):
        raise ValueError(f"No filesystem registered for scheme {scheme}")

    def find_spec(name):
        raise ModuleNotFoundError(name)

    connect(monkeypatch, "there", conn_type="any")
    monkeypatch.setattr(io, "get_fs", get_fs)
    monkeypatch.setattr(experiment_storage, "find_spec", find_spec)
    with pytest.raises(InvalidInputError) as error:
        ExperimentStorageHook().open(uri)
    assert str(error.value) == (
        f"Connection 'there' cannot open {uri.partition(':')[0]}://: the package "
        f"apache-airflow-providers-{provider} is not installed where this runs. Install it on every part "
        f"of Airflow: pip install {install}."
    )


def test_each_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for text in experiment_storage._INSTALL.values():
        assert re.findall(r"\[(.*?)\]", text)[0] in extras
    assert experiment_storage._INSTALL.keys() == set(experiment_storage._PROVIDERS.values())


def test_without_a_connection_a_runner_gets_nothing():
    with ExperimentStorageHook().runner_env("s3://bucket/a") as env:
        assert env == {}


def test_an_aws_connection_becomes_the_variables_of_its_libraries(monkeypatch):
    extra = {"endpoint_url": "http://127.0.0.1:1", "region_name": "eu-west-1"}
    connect(monkeypatch, "minio", conn_type="aws", login="me", password=CANARY, extra=extra)
    with ExperimentStorageHook().runner_env("s3://minio@bucket/a") as env:
        assert env == {
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_REGION": "eu-west-1",
            "AWS_DEFAULT_REGION": "eu-west-1",
        }


def test_an_aws_connection_without_keys_leaves_the_machines_identity(monkeypatch):
    connect(monkeypatch, "role", conn_type="aws", extra={"region_name": "eu-west-1"})
    with ExperimentStorageHook().runner_env("s3://role@bucket/a") as env:
        assert set(env) == {"AWS_REGION", "AWS_DEFAULT_REGION"}


def test_a_google_key_is_a_private_file_as_long_as_it_is_needed(monkeypatch):
    key = {"type": "service_account", "private_key": CANARY}
    connect(monkeypatch, "gcp", conn_type="google_cloud_platform", extra={"keyfile_dict": key})
    with ExperimentStorageHook().runner_env("gs://gcp@bucket/a") as env:
        file = Path(env["GOOGLE_APPLICATION_CREDENTIALS"])
        assert json.loads(file.read_text()) == key
        assert file.stat().st_mode & 0o077 == 0
    assert not file.exists()


def test_a_google_key_file_is_named(monkeypatch):
    extra = {"key_path": "/keys/a.json", "project": "p"}
    connect(monkeypatch, "gcp", conn_type="google_cloud_platform", extra=extra)
    with ExperimentStorageHook().runner_env("gs://gcp@bucket/a") as env:
        assert env == {
            "GOOGLE_APPLICATION_CREDENTIALS": "/keys/a.json",
            "GOOGLE_CLOUD_PROJECT": "p",
        }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"login": "account", "password": CANARY},
            {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": CANARY},
        ),
        (
            {"extra": {"connection_string": f"AccountKey={CANARY}"}},
            {"AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={CANARY}"},
        ),
        (
            {
                "login": "app",
                "password": CANARY,
                "host": "https://account.blob.core.windows.net",
                "extra": {"tenant_id": "t"},
            },
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_TENANT_ID": "t",
                "AZURE_STORAGE_CLIENT_ID": "app",
                "AZURE_STORAGE_CLIENT_SECRET": CANARY,
            },
        ),
    ],
)
def test_an_azure_connection_becomes_the_variables_of_adlfs(monkeypatch, fields, expected):
    connect(monkeypatch, "az", conn_type="wasb", **fields)
    with ExperimentStorageHook().runner_env("abfs://az@container/a") as env:
        assert env == expected


def test_a_connection_of_another_kind_is_refused_with_a_way_out(monkeypatch):
    connect(monkeypatch, "ftp", conn_type="ftp", password=CANARY)
    with (
        pytest.raises(InvalidInputError, match=r"type 'ftp'.*environment of the Airflow workers"),
        ExperimentStorageHook().runner_env("s3://ftp@bucket/a"),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "fields", "expected"),
    [
        (
            "s3://cloud@bucket/a",
            {
                "conn_type": "aws",
                "login": "me",
                "password": CANARY,
                "extra": {"role_arn": "arn:aws:iam::1:role/r", "region_name": "eu-west-1"},
            },
            {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"},
        ),
        (
            "gs://cloud@bucket/a",
            {
                "conn_type": "google_cloud_platform",
                "extra": {"project": "p", "keyfile_dict": {"private_key": CANARY}},
            },
            {"GOOGLE_CLOUD_PROJECT": "p"},
        ),
        (
            "abfs://cloud@container/a",
            {"conn_type": "wasb", "login": "account", "password": CANARY},
            {"AZURE_STORAGE_ACCOUNT_NAME": "account"},
        ),
        ("/data/a", {"conn_type": "aws"}, {}),
    ],
)
def test_the_public_variables_are_found_without_a_request_or_a_key_file(
    monkeypatch, address, fields, expected
):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a secret was made")

    connect(monkeypatch, "cloud", **fields)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr("botocore.session.Session.create_client", refuse)
    monkeypatch.setattr("airflow.providers.amazon.aws.hooks.s3.S3Hook.get_credentials", refuse)
    assert ExperimentStorageHook().public_env(address) == expected


def test_a_connection_of_another_kind_has_no_public_variables(monkeypatch):
    connect(monkeypatch, "ftp", conn_type="ftp", password=CANARY)
    with pytest.raises(InvalidInputError, match="type 'ftp'"):
        ExperimentStorageHook().public_env("s3://ftp@bucket/a")


def test_nothing_reaches_the_environment_of_this_process(monkeypatch):
    connect(monkeypatch, "minio", conn_type="aws", login="me", password=CANARY)
    with ExperimentStorageHook().runner_env("s3://minio@bucket/a"):
        leaked = {name for name, value in os.environ.items() if CANARY in value}
    assert leaked == {"AIRFLOW_CONN_MINIO"}
