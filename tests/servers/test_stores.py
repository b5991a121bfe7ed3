"""Every store against the one suite, on real servers; and what their clients' errors become.

GCS and Azure go through it in tests/servers/slow, and through what leases need in test_other_clouds.py.
"""

import os
from datetime import UTC, datetime

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, KeyExistsError, StorageError
from airflow_tune_restore.storage import s3 as s3_module
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.storage.s3 import ArrowStore
from airflow_tune_restore.storage.s3_bulk import BulkS3Store
from tests.support.storage.conformance import (
    CloudConformance,
    ObjectStoreConformance,
    ReadWriteConformance,
    uses,
)
from tests.support.storage.proxy import Fault, Proxy


@pytest.fixture(scope="module")
def s3_in_bulk(s3):
    """One client for many tests, each below a root of its own: it takes a third of a second to make."""
    return open_store(s3.url, in_bulk=True)


@pytest.fixture(scope="module")
def s3_store(s3):
    return open_store(s3.url)


class TestMemory(ObjectStoreConformance):
    @pytest.fixture
    def store(self):
        return MemoryStore()

    def test_its_clock_is_given(self):
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        store = MemoryStore(clock=lambda: noon)
        store.put("x", b"")
        assert store.now() == store.list_dir()[0].modified_at == noon


class TestFsspecMemory(ObjectStoreConformance):
    """The plain FsspecStore, as for every scheme without a module of its own."""

    has_etags = False

    @pytest.fixture
    def store(self):
        return open_store("memory://suite")


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

    def test_nothing_is_left_of_a_write_that_failed(self, store, tmp_path):
        (tmp_path / "dir").mkdir()
        with pytest.raises(StorageError, match="Cannot write"):
            store.put("dir", b"x")
        with pytest.raises(StorageError, match="Cannot write"):
            store.put("dir/" + "x" * 300, b"x")
        assert [path.name for path in tmp_path.rglob("*")] == ["dir"]

    @pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/outside"])
    def test_no_key_leads_out_of_it(self, store, key):
        for use in (store.get, store.list_dir, store.delete, store.at):
            with pytest.raises(InvalidInputError, match="leads out of"):
                use(key)
        with pytest.raises(InvalidInputError, match="leads out of"):
            store.put(key, b"x")

    def test_a_link_that_nfs_made_twice_counts_as_created(self, store, monkeypatch):
        link = os.link

        def answered_late(source, target, **where):
            link(source, target, **where)
            raise FileExistsError(target)

        monkeypatch.setattr(os, "link", answered_late)
        store.create("x", b"ours")
        assert store.get("x") == b"ours"


class TestS3InBulk(CloudConformance, ObjectStoreConformance):
    """Listings and gets through obstore; what it cannot do, through s3fs."""

    racers = 4
    rounds = 1

    @pytest.fixture
    def store(self, s3_in_bulk):
        assert isinstance(s3_in_bulk, BulkS3Store)
        return s3_in_bulk

    def test_it_lists_and_reads_without_s3fs(self, root, monkeypatch):
        root.put("x", b"1")
        root.put("a=1, 50%/y", b"2")

        async def refuse(*_args, **_kwargs):
            raise AssertionError("s3fs was asked")

        monkeypatch.setattr(type(root._fs), "_call_s3", refuse)
        assert [e.name for e in root.list_dir()] == ["a=1, 50%", "x"]
        assert root.get("x", max_bytes=1) == root.get("x") == b"1"
        assert root.get("a=1, 50%/y") == b"2"
        assert root.list_dir("a=1, 50%")[0].size_bytes == 1

    @pytest.mark.parametrize("times", [1, 1000])
    def test_a_stream_that_breaks_is_taken_up_again_or_an_error(self, s3, root, monkeypatch, times):
        body = bytes(range(256)) * 80_000
        root.put("large", body)
        with Proxy(s3.endpoint) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            behind = open_store(root.uri, in_bulk=True)
            proxy.add(Fault("drop_answer", "^GET .*large", times=times))
            if times == 1:
                assert b"".join(behind.stream("large", max_bytes=len(body))) == body
                return
            with pytest.raises(StorageError, match=r"Cannot read .*large to its end: "):
                list(behind.stream("large", max_bytes=len(body)))


class TestS3(CloudConformance, ObjectStoreConformance):
    racers = 4  # SeaweedFS polls each second under contention
    rounds = 2

    @pytest.fixture
    def store(self, s3_store):
        return s3_store

    def test_a_long_listing_is_read_to_its_end(self, root, monkeypatch):
        for number in range(7):
            root.put(f"{number}", b"x")
            root.put(f"dir-{number}/x", b"x")
        monkeypatch.setitem(root._fs.req_kw, "MaxKeys", 3)
        assert len(root.list_dir()) == 14

    def test_an_object_is_read_with_one_request(self, root, monkeypatch):
        root.put("x", b"1")
        asked, ask = [], type(root._fs)._call_s3

        async def record(self, method, *args, **kwargs):
            asked.append(method if isinstance(method, str) else method.__name__)
            return await ask(self, method, *args, **kwargs)

        monkeypatch.setattr(type(root._fs), "_call_s3", record)
        assert root.get("x") == root.get("x", max_bytes=10) == b"1"
        assert asked == ["get_object", "get_object"]

    def test_the_end_of_a_race_that_aws_reports_is_waited_for(self, root, monkeypatch):
        monkeypatch.setattr(s3_module, "CONFLICT_DELAYS", (0, 0, 0))
        pipe_file, answers = root._fs.pipe_file, [_conflict(), _conflict()]

        def contended(*args, **kwargs):
            if answers:
                raise answers.pop()
            return pipe_file(*args, **kwargs)

        monkeypatch.setattr(root._fs, "pipe_file", contended, raising=False)
        root.create("x", b"ours")
        with pytest.raises(KeyExistsError):
            root.create("x", b"theirs")
        assert (answers, root.get("x")) == ([], b"ours")

    def test_a_create_whose_answer_was_lost_and_repeated_has_won(self, root, monkeypatch):
        pipe_file = root._fs.pipe_file

        def twice(*args, **kwargs):
            pipe_file(*args, **kwargs)
            return pipe_file(*args, **kwargs)

        monkeypatch.setattr(root._fs, "pipe_file", twice, raising=False)
        root.create("x", b"ours")
        assert root.get("x") == b"ours"

    @pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
    def test_wrong_credentials_are_a_sentence(self, s3, monkeypatch, name):
        monkeypatch.setenv(name, "wrong-canary")
        for use in uses(open_store(s3.url)):
            with pytest.raises(StorageError, match="Check the credentials") as caught:
                use()
            assert "canary" not in str(caught.value)

    def test_no_credentials_are_a_sentence(self, s3, monkeypatch, tmp_path):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(StorageError, match="Check the credentials"):
            open_store(s3.url).list_dir()

    def test_an_unreachable_server_is_a_sentence(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StorageError, match="does not answer"):
            open_store(s3.url).get("x")


class TestS3ThroughPyarrow(CloudConformance, ReadWriteConformance):
    """As in a Ray image without s3fs."""

    has_etags = False

    @pytest.fixture(autouse=True)
    def _no_s3fs(self, monkeypatch):
        import fsspec

        def refuse(*_args, **_kwargs):
            raise ImportError("s3fs is not installed")

        monkeypatch.setattr(fsspec, "filesystem", refuse)

    @pytest.fixture
    def store(self, s3):
        store = open_store(s3.url)
        assert isinstance(store, ArrowStore)
        return store

    def put_marker(self, root, path):
        root._fs.makedirs(root._path(path))

    def test_a_missing_bucket_is_not_a_missing_object(self):
        pytest.skip("pyarrow asks with HEAD, whose answer does not tell them apart")

    def test_it_cannot_create_and_names_what_can(self, root):
        with pytest.raises(StorageError, match=r"airflow-tune-restore\[s3\]"):
            root.create("x", b"")

    def test_wrong_credentials_are_a_sentence(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-canary")
        for use in uses(open_store(s3.url))[:3]:
            with pytest.raises(StorageError, match="Check the credentials") as caught:
                use()
            assert "canary" not in str(caught.value)


def _conflict():
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    code = {"Code": "ConditionalRequestConflict", "Message": "A conflicting operation is going on"}
    answer = {"Error": code, "ResponseMetadata": {"HTTPStatusCode": 409}}
    return translate_boto_error(ClientError(answer, "PutObject"))
