"""Paths and URLs; a path with `://` in it is still a path."""

from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.storage.fs import arrow_filesystem, open_store
from airflow_tune_restore.storage.location import Location, explain_percent
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


def test_a_home_that_does_not_exist_is_explained():
    with pytest.raises(InvalidInputError, match="~nobody-of-this-name/x"):
        open_store("~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        (
            "s3://b/k?endpoint_override=http://h:1",
            ("s3", "b", "/k", "endpoint_override=http://h:1"),
        ),
        ("s3://c@b?region=x&scheme=http", ("s3", "c@b", "", "region=x&scheme=http")),
        ("s3://b/why?/q?r/x?region=x?", ("s3", "b", "/why?/q?r/x", "region=x?")),
        ("s3://b/k?=x", ("s3", "b", "/k", "=x")),
        ("s3://b/k?&region=x", ("s3", "b", "/k", "&region=x")),
    ],
)
def test_options_begin_at_a_question_mark_that_a_name_and_an_equals_sign_follow(url, parts):
    assert Location.parse(url) == parts
    assert str(Location.parse(url)) == url


@pytest.mark.parametrize("key", ["why?", "q?r", "?", "a?b/c=d", "x??", "a=b?"])
def test_a_question_mark_alone_belongs_to_its_key(key):
    assert Location.parse(f"s3://bucket/{key}") == ("s3", "bucket", f"/{key}", "")


@given(st.text())
@example("s3://b/k?a=b?c=d")
@example("/a?region=x")
def test_no_character_of_a_path_or_url_is_lost(text):
    scheme, separator, rest = text.partition("://")
    written = f"{scheme.lower()}{separator}{rest}" if Location.parse(text).scheme else text
    assert str(Location.parse(text)) == written


@pytest.mark.parametrize("options", ["", "?region=x&endpoint_override=http://h:1/"])
def test_a_place_above_or_below_has_the_same_options(options):
    location = Location.parse(f"s3://bucket/team/exp{options}")
    assert location.name == "exp"
    assert str(location.at("dir/x")) == f"s3://bucket/team/exp/dir/x{options}"
    assert location.at("") == location
    assert location.at("dir").parent == location
    assert str(location.parent.parent) == f"s3://bucket{options}"
    assert Location.parse(f"s3://bucket{options}").name == "bucket"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3://b/my%20sweep?region=x", "'s3://b/my sweep?region=x'"),
        ("s3://b/my sweep", ""),
        ("s3://b/100%", ""),
        ("/data/my%20sweep", ""),
    ],
)
def test_a_percent_that_ray_would_decode_is_pointed_out(text, meant):
    assert meant in explain_percent(text)
    assert bool(explain_percent(text)) is bool(meant)
