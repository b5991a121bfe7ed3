"""Addresses with an endpoint in them, as Ray's documentation writes them; the environment has none."""

import json
import pickle
import subprocess
import sys
import uuid

import pytest

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage import s3 as s3_module
from airflow_tune_restore.storage.fs import arrow_filesystem, open_store
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.storage.s3 import ArrowStore, S3Store
from airflow_tune_restore.storage.s3_bulk import BulkS3Store
from tests.support import ROOT
from tests.support.airflow.context import make_context
from tests.support.experiments.failed import environment
from tests.support.storage.empty_bucket import empty_bucket, own_certificate

WHERE = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture
def bare(s3, monkeypatch):
    """The S3 server, its keys in the environment, but not where it is."""
    for name in WHERE:
        monkeypatch.delenv(name)
    return s3


def with_options(url, server, options="endpoint_override={endpoint}", **values):
    """Return a URL with options; one is always the endpoint."""
    values |= {"endpoint": server.endpoint, "host": server.endpoint.partition("://")[2]}
    return f"{url}?{options.format(**values)}"


S3_OPTIONS = [
    "endpoint_override={endpoint}",
    "endpoint_override={endpoint}/",
    "scheme=http&endpoint_override={host}",
    "scheme=https&endpoint_override={endpoint}",
    *(
        f"endpoint_override={{endpoint}}&{option}"
        for option in (
            "region=eu-west-9",
            "allow_bucket_creation=true",
            "allow_bucket_deletion=false",
            "allow_delayed_open=1",
            "tls_ca_file_path={certificate}",
            "tls_verify_certificates=true",
            "smart_defaults=standard",
        )
    ),
]


def test_each_option_of_s3_is_tried():
    tried = {piece.partition("=")[0] for options in S3_OPTIONS for piece in options.split("&")}
    assert tried == set(S3Store.OPTIONS)


@pytest.mark.parametrize("options", S3_OPTIONS)
def test_every_client_reaches_an_s3_server_by_each_of_its_options(options, bare, tmp_path):
    certificate = own_certificate(tmp_path) if "{certificate}" in options else None
    place = f"{bare.url}/why?/{uuid.uuid4().hex}"
    url = with_options(place, bare, options, certificate=certificate)
    store, in_bulk = open_store(url), open_store(url, in_bulk=True)
    assert store.uri == in_bulk.uri == url
    store.create("dir/x", b"1")
    assert [entry.name for entry in in_bulk.list_dir("dir")] == ["x"]
    assert in_bulk.at("dir").get("x") == b"1"
    filesystem, path = arrow_filesystem(url)
    filesystem = pickle.loads(pickle.dumps(filesystem))  # noqa: TID251  as Ray does
    with filesystem.open_input_stream(f"{path}/dir/x") as file:
        assert file.read() == b"1"


def test_without_s3fs_pyarrow_reaches_it(bare, monkeypatch):
    import fsspec

    def refuse(*_args, **_kwargs):
        raise ImportError("Please install s3fs")

    url = with_options(f"{bare.url}/{uuid.uuid4().hex}", bare)
    open_store(url).put("x", b"1")
    monkeypatch.setattr(fsspec, "filesystem", refuse)
    store = open_store(url)
    assert isinstance(store, ArrowStore)
    assert (store.get("x"), store.uri) == (b"1", url)


def test_bulk_reads_are_left_to_s3fs_where_obstore_would_pass_an_option_over(bare):
    for option, kind in {"region=x": BulkS3Store, "smart_defaults=standard": S3Store}.items():
        url = with_options(f"{bare.url}/x", bare, f"endpoint_override={{endpoint}}&{option}")
        assert type(open_store(url, in_bulk=True)) is kind


def shell(*arguments, **env):
    command = [sys.executable, "-m", "airflow_tune_restore.cli.app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, check=False
    )


def test_what_the_shell_finds_by_such_an_address_it_plans_by_the_address_it_printed(
    bare, failed_experiments
):
    top = uuid.uuid4().hex
    bare.upload(failed_experiments["errored"], f"{top}/team/exp")
    ledger = {"trials": {"bad": {"quarantined": "ValueError, 2 times"}}}
    open_store(with_options(f"{bare.url}/{top}/team/exp", bare)).put(
        layout.LEDGER, json.dumps(ledger).encode()
    )
    address = with_options(f"{bare.url}/{top}", bare)
    scanned = shell("scan", address, "--stale-after", "0", "--json", AWS_REGION="eu-west-9")
    assert scanned.returncode == 0, scanned.stderr
    (report,) = json.loads(scanned.stdout)
    assert report["experiment"] == with_options(f"{bare.url}/{top}/team/exp", bare)
    assert report["quarantined"] == ["bad"]  # read at the place that was found
    planned = shell("plan", report["experiment"], "--resume-errored", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["experiment"] == report["experiment"]


def test_only_the_given_endpoint_gets_requests(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in WHERE:
        monkeypatch.delenv(name, raising=False)
    with empty_bucket() as ours, empty_bucket() as elsewhere:
        env = {
            "HTTPS_PROXY": f"http://{elsewhere.authority}",
            "HTTP_PROXY": f"http://{elsewhere.authority}",
            "NO_PROXY": "127.0.0.1",
            "AWS_MAX_ATTEMPTS": "1",
        }
        done = shell("scan", f"s3://b/team?endpoint_override=http://{ours.authority}", **env)
        assert done.returncode == 0, done.stderr
        assert "GET /b?delimiter=%2F&list-type=2&prefix=team%2F" in ours.asked
        assert ours.scopes == {"us-east-1"}
        assert elsewhere.asked == []
        shell("scan", "s3://b/team", **env)
        assert elsewhere.asked  # so a request to AWS would have been seen


def test_a_certificate_of_ones_own_is_trusted_by_each_client_if_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in WHERE:
        monkeypatch.delenv(name, raising=False)
    path = own_certificate(tmp_path)
    with empty_bucket(path) as server:
        url = f"s3://b/team?endpoint_override=https://{server.authority}"
        with pytest.raises(StorageError):
            open_store(url, in_bulk=True).list_dir()
        assert server.asked == []
        trusting = f"{url}&tls_ca_file_path={path}"
        assert open_store(trusting, in_bulk=True).list_dir() == []
        assert len(server.asked) == 1
        through_arrow = s3_module.s3_over_arrow(Location.parse(trusting))
        assert through_arrow is not None
        assert ArrowStore(through_arrow, Location.parse(trusting)).list_dir() == []
        assert len(server.asked) > 1


def test_the_address_wins_over_the_endpoint_and_region_of_a_connection(bare, monkeypatch):
    connection = json.loads(bare.airflow_connection)
    connection["extra"] |= {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-west-1"}
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", json.dumps(connection))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    url = with_options(f"{bare.bucket}/{uuid.uuid4().hex}", bare)
    hook = ExperimentStorageHook()
    store = hook.open(f"s3://seaweed@{url}")
    assert store.uri == f"s3://{url}"
    store.put("x", b"1")  # so the keys are the connection's
    other = hook.open(f"s3://seaweed@{url}&region=eu-west-9")
    assert other.get("x") == b"1"
    regions = [kept._fs.s3.meta.region_name for kept in (store, other)]
    assert regions == ["eu-west-1", "eu-west-9"]


def test_a_plan_in_airflow_hands_on_the_address_with_connection_and_options(
    bare, monkeypatch, failed_experiments
):
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", bare.airflow_connection)
    place = bare.upload(failed_experiments["errored"], f"{uuid.uuid4().hex}/exp")
    address = with_options(place.replace("s3://", "s3://seaweed@"), bare)
    plan = BuildRestorePlanOperator(
        task_id="plan", experiments=address, resume_errored=True, stale_after=0
    )
    (item,) = plan.execute(make_context())
    assert (item["experiment"], item["experiment_name"]) == (address, "exp")
    written = read_plan(ExperimentStorageHook().open(address), item["restore_id"])
    assert written.experiment == with_options(place, bare)


def test_a_runner_with_a_connections_environment_uses_the_endpoint_of_the_address(
    bare, monkeypatch
):
    connection = json.loads(bare.airflow_connection)
    connection["extra"] |= {"endpoint_url": "http://127.0.0.1:9"}
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", json.dumps(connection))
    url = with_options(f"{bare.bucket}/{uuid.uuid4().hex}", bare)
    with ExperimentStorageHook().runner_env(f"s3://seaweed@{url}") as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        open_store(f"s3://{url}").put("x", b"1")
        filesystem, path = arrow_filesystem(f"s3://{url}")
        if filesystem is None:
            from pyarrow.fs import FileSystem

            filesystem, path = FileSystem.from_uri(path)
        with filesystem.open_input_stream(f"{path}/x") as file:
            assert file.read() == b"1"


def test_google_cloud_storage_is_reached_by_the_options_too(gcs, monkeypatch):
    from pyarrow.fs import FileSelector

    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    place = f"{gcs.url}/{uuid.uuid4().hex}"
    for options in (
        "endpoint_override={endpoint}&project_id=test",
        "scheme=http&endpoint_override={host}",
    ):
        url = with_options(place, gcs, options)
        store = open_store(url)
        store.put("dir/x", b"1")
        assert store.get("dir/x") == b"1"
        assert store.at("dir").uri == with_options(f"{place}/dir", gcs, options)
        filesystem, path = arrow_filesystem(url)
        filesystem = pickle.loads(pickle.dumps(filesystem))  # noqa: TID251  as Ray does
        assert [info.path for info in filesystem.get_file_info(FileSelector(f"{path}/dir"))] == [
            f"{path}/dir/x"
        ]


def test_the_shell_opens_a_connection_and_its_local_runners_get_the_credentials(
    bare, tmp_path, failed_experiments
):
    """The environment holds the connection, and neither keys nor an endpoint."""
    place = bare.upload(failed_experiments["errored"], f"{uuid.uuid4().hex}/exp")
    address = place.replace("s3://", "s3://seaweed@")
    env = {k: v for k, v in environment().items() if not k.startswith("AWS_")}
    env |= {"AIRFLOW_CONN_SEAWEED": bare.airflow_connection, "AWS_EC2_METADATA_DISABLED": "true"}

    def shell(*arguments):
        command = [sys.executable, "-m", "airflow_tune_restore.cli.app", *arguments, "--json"]
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )

    found = shell("scan", address.removesuffix("/exp"))
    (report,) = json.loads(found.stdout)
    assert (report["experiment"], report["health"]) == (place, "errored")
    # the check of the trainable runs in a process of its own, and reads the experiment there
    refused = shell("restore", address, "--trainable", "json:dumps", "--resume-errored")
    assert refused.returncode == 2
    assert "json:dumps" in refused.stderr.splitlines()[-1]
    assert "Cannot" not in refused.stderr
