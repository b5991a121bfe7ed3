"""Every store against the one suite, on real servers."""

import os
import pickle

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.storage.arrow import arrow_filesystem
from airflow_tune_restore.storage.fs import check_exclusive_create, open_store
from airflow_tune_restore.storage.memory import MemoryStore
from tests.conformance.store import ObjectStoreConformance
from tests.servers import AZURITE_KEY


class TestMemory(ObjectStoreConformance):
    @pytest.fixture
    def store(self):
        return MemoryStore()


class TestLocalDisk(ObjectStoreConformance):
    racers = 16
    rounds = 20

    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path.as_posix())

    def test_half_written_files_are_not_listed(self, store, tmp_path):
        (tmp_path / ".tmp-0123").write_bytes(b"half")
        store.put("whole", b"x")
        assert [e.name for e in store.list_dir()] == ["whole"]


class TestS3(ObjectStoreConformance):
    racers = 4  # SeaweedFS polls each second under contention
    rounds = 2

    @pytest.fixture
    def store(self, s3):
        return open_store(s3.url)

    def test_directory_markers_are_folded_into_their_directory(self, root):
        root.put("dir/file", b"x")
        root._fs.pipe_file(f"{root._root}/dir/", b"")
        assert [(e.name, e.is_dir) for e in root.list_dir()] == [("dir", True)]
        assert [e.name for e in root.list_dir("dir")] == ["file"]

    def test_wrong_credentials_are_a_sentence(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StorageError, match="Check the credentials") as caught:
            open_store(s3.url).list_dir()
        assert "wrong" not in str(caught.value)

    def test_an_unreachable_server_is_a_sentence(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(StorageError, match="does not answer"):
            open_store(s3.url).get("x")

    def test_a_missing_bucket_is_a_sentence(self, s3):
        with pytest.raises(StorageError, match="no bucket"):
            open_store("s3://no-such-bucket-here").get("x")

    def test_without_s3fs_it_is_read_through_pyarrow(self, s3, monkeypatch, root):
        import fsspec

        def refuse(*_args, **_kwargs):
            raise ImportError("s3fs is not installed")

        root.put("a/b", b"x")
        monkeypatch.setattr(fsspec, "filesystem", refuse)
        through_arrow = open_store(root.uri)
        assert through_arrow.get("a/b") == b"x"
        assert through_arrow.get("a/b", max_bytes=10) == b"x"
        through_arrow.put("a/c", b"y")
        assert [e.name for e in through_arrow.list_dir("a")] == ["b", "c"]
        with pytest.raises(StorageError, match="s3fs"):
            through_arrow.create("a/d", b"z")


class TestGcs(ObjectStoreConformance):
    @pytest.fixture
    def store(self, gcs):
        return open_store(gcs.url)


class TestAzure(ObjectStoreConformance):
    @pytest.fixture
    def store(self, azure):
        return open_store(azure.url)


def test_a_store_that_lets_two_creators_win_is_refused():
    class Careless(MemoryStore):
        def create(self, key, body):
            self.put(key, body)

    with pytest.raises(StorageError, match="exclusively"):
        check_exclusive_create(Careless())


@pytest.mark.parametrize(
    "uri", ["", "  ", "s3://conn@bucket/x", "s3://key:secret@bucket/x", "nope://x"]
)
def test_urls_that_cannot_be_used_are_refused(uri):
    with pytest.raises(InvalidInputError) as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_rays_view_carries_no_secret_into_a_pickle(kind, request):
    server = request.getfixturevalue(kind)
    filesystem, path = arrow_filesystem(f"{server.url}/experiment")
    if filesystem is None:
        import pyarrow.fs

        filesystem, path = pyarrow.fs.FileSystem.from_uri(path)
    body = pickle.dumps(filesystem)
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"]] if kind == "s3" else [AZURITE_KEY]
    assert not [secret for secret in secrets if secret.encode() in body]
