"""What is a path and what a URL, and that a path with `://` in it names the directory it names."""

from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.storage.arrow import arrow_filesystem
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.location import Location
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import night, plan_night


@pytest.mark.parametrize(
    "path",
    [
        "/a://b",
        "/://",
        "//host://b",
        "/sweeps/s3://conn@bucket/x",
        "./a://b",
        "../a://b",
        "~/a://b",
        "~somebody/a://b",
        "~://b",
        "sweeps/a://b",  # no scheme has a slash in it
        ".",
        "..",
        "~",
        "://b",
        "a:/b",
    ],
)
def test_what_begins_as_a_path_is_one_whatever_follows(path):
    assert Location.parse(path) == ("", "", path, "")
    assert str(Location.parse(path)) == path


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket/a", ("s3", "bucket", "/a")),
        ("S3A://who@bucket/a://b", ("s3a", "who@bucket", "/a://b")),
        ("file:///a://b", ("file", "", "/a://b")),
        ("memory://", ("memory", "", "")),
        ("a.b+c-d://x", ("a.b+c-d", "x", "")),
    ],
)
def test_what_begins_with_a_scheme_is_a_url(url, parts):
    assert Location.parse(url) == (*parts, "")


@pytest.fixture
def odd(tmp_path) -> str:
    """An experiment in the directory `b` of a directory `a:`, written with two slashes."""
    make_experiment(tmp_path / "a:" / "b", [make_row("done"), make_row("bad", status="ERROR")])
    return f"{tmp_path}/a://b"


def test_an_experiment_below_a_directory_with_a_colon_is_opened_scanned_and_restored(odd, tmp_path):
    hook = ExperimentStorageHook()
    store = hook.open(odd)
    assert store.uri == f"{tmp_path}/a:/b"
    (report,) = hook.scan(odd, stale_after=timedelta(0))
    assert (report.experiment, report.health) == (store.uri, "errored")
    plan = plan_night(store)
    assert plan.experiment == store.uri
    assert night(store, "r1", result="finished").state_file is not None


def test_it_is_read_where_it_was_found_by_ray_too(odd):
    from pyarrow.fs import FileSystem, LocalFileSystem

    for uri in (odd, open_store(odd).uri):
        assert arrow_filesystem(uri) == (None, uri)
        filesystem, path = FileSystem.from_uri(uri)  # as Ray does
        assert isinstance(filesystem, LocalFileSystem)
        assert path == uri


def test_a_path_with_a_url_in_it_takes_no_connection_and_has_no_password(odd):
    text = "/sweeps/s3://key:value@bucket/x"
    assert Address.parse(text) == Address(text)
    with pytest.raises(InvalidInputError, match="is a local path"):
        Address.parse(odd, storage_conn_id="minio")


def test_the_home_directory_stands_before_such_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/a://b").uri == f"{tmp_path}/a:/b"


def test_nobodys_home_is_a_sentence():
    with pytest.raises(InvalidInputError, match="~nobody-of-this-name/x"):
        open_store("~nobody-of-this-name/x")
