"""Opening stores: URLs, missing packages, given filesystems, and the view of the same place for Ray."""

import pickle
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, KeyExistsError, StorageError
from airflow_tune_restore.storage.fs import arrow_filesystem, open_store
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.storage.self_test import check_exclusive_create
from tests.support.storage.servers import AZURITE_KEY, GOOGLE_KEY_CANARY, google_key_file
from tests.support.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_filesystem_that_is_given_may_have_a_cache(kind, request):
    import fsspec

    server = request.getfixturevalue(kind)
    place = uuid.uuid4().hex
    scheme = server.url.partition("://")[0]
    cached = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=True)
    ours = open_store(f"{server.url}/{place}", filesystem=cached)
    theirs = open_store(f"{server.url}/{place}")
    theirs.put("dir/first", b"x")
    cached.ls(f"{server.bucket}/{place}/dir")
    theirs.put("dir/second", b"x")
    assert [e.name for e in ours.list_dir("dir")] == ["first", "second"]


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_the_time_is_the_servers(kind, request, monkeypatch):
    class Late(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(days=1)

    store = open_store(f"{request.getfixturevalue(kind).url}/{uuid.uuid4().hex}")
    store.put("x", b"x")
    monkeypatch.setattr("airflow_tune_restore.storage.fsspec_store.datetime", Late)
    assert abs(store.now() - datetime.now(UTC)) < timedelta(hours=1)


@pytest.mark.parametrize("in_bulk", [False, True])
def test_a_filesystem_keeps_the_session_that_it_was_given(s3, in_bulk, monkeypatch):
    """As that of an Airflow connection: its keys are nowhere else."""
    from aiobotocore.session import get_session
    from s3fs import S3FileSystem

    session = get_session()
    session.set_credentials(s3.env["AWS_ACCESS_KEY_ID"], s3.env["AWS_SECRET_ACCESS_KEY"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given = S3FileSystem(session=session, endpoint_url=s3.endpoint, skip_instance_cache=True)
    given.connect()
    store = open_store(f"{s3.url}/{uuid.uuid4().hex}", filesystem=given, in_bulk=in_bulk)
    store.create("x", b"1")
    assert [entry.name for entry in store.list_dir("")] == ["x"]


class Careless(MemoryStore):
    def create(self, key, body):
        self.put(key, body)


class LookingFirst(MemoryStore):
    """As many clients do it over a network: passes if creators come one after the other."""

    def __init__(self):
        super().__init__()
        self.have_looked = threading.Barrier(2)

    def create(self, key, body):
        taken = key in self._objects
        self.have_looked.wait(PATIENCE_SECONDS)
        if taken:
            raise KeyExistsError(self.uri, key)
        self.put(key, body)


@pytest.mark.parametrize("kind", [Careless, LookingFirst])
def test_a_store_that_lets_two_creators_win_is_refused(kind):
    store = kind()
    with pytest.raises(StorageError, match="exclusively"):
        check_exclusive_create(store)
    assert store.list_dir() == []


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "  ",
        "s3://",
        "s3:///",
        "s3://conn@bucket/x",
        "s3://key:secret@bucket/x",
        "s3://key:?secret@bucket/x",
        "s3:///key:secret@bucket/x",
        "abfs://container@account.dfs.core.windows.net/x",
        "nope://x",
    ],
)
def test_urls_that_cannot_be_used_are_refused(uri):
    with pytest.raises(InvalidInputError) as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("abfs", "azure"), ("az", "azure")]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(scheme, extra, monkeypatch):
    import fsspec

    def refuse(*_args, **_kwargs):
        raise ImportError("Please install it")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    monkeypatch.setattr("airflow_tune_restore.storage.fs.s3_over_arrow", lambda _bucket: None)
    with pytest.raises(InvalidInputError, match=rf"airflow-tune-restore\[{extra}\]"):
        open_store(f"{scheme}://bucket/x")


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_rays_view_carries_no_secret_into_a_pickle(kind, request, monkeypatch, tmp_path):
    server = request.getfixturevalue(kind)
    canaries = {
        "AWS_SESSION_TOKEN": "canary-session",
        "AZURE_STORAGE_ACCOUNT_KEY": "Y2FuYXJ5LWtleQ==",
        "AZURE_STORAGE_SAS_TOKEN": "sig=canary-sas",
        "AZURE_STORAGE_CLIENT_SECRET": "canary-client",
    }
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", google_key_file(tmp_path))
    filesystem, path = arrow_filesystem(f"{server.url}/experiment")
    if filesystem is None:
        import pyarrow.fs

        filesystem, path = pyarrow.fs.FileSystem.from_uri(path)
    body = pickle.dumps(filesystem)
    secrets = [*canaries.values(), "test-secret-canary", AZURITE_KEY, GOOGLE_KEY_CANARY]
    assert not [secret for secret in secrets if secret.encode() in body]


@pytest.mark.parametrize("kind", ["gcs", "azure"])
def test_rays_view_shows_what_the_store_wrote(kind, request):
    from pyarrow.fs import FileSelector

    server = request.getfixturevalue(kind)
    store = open_store(f"{server.url}/{uuid.uuid4().hex}")
    filesystem, path = arrow_filesystem(store.uri)
    filesystem = pickle.loads(pickle.dumps(filesystem))  # noqa: TID251  as Ray does
    assert filesystem.get_file_info(FileSelector(path, allow_not_found=True)) == []
    store.put("dir/x", b"1")
    found = filesystem.get_file_info(FileSelector(path, recursive=True))
    assert f"{path}/dir/x" in [info.path for info in found]
    with filesystem.open_input_stream(f"{path}/dir/x") as file:
        assert file.read() == b"1"
