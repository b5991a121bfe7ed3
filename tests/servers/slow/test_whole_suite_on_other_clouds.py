"""The suite of test_stores.py on emulators of GCS and Azure, and what takes a client long to give up."""

import types

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.s3 import ArrowStore
from tests.support.storage.conformance import CloudConformance, ObjectStoreConformance, uses
from tests.support.storage.servers import AZURITE_KEY


class TestGcs(CloudConformance, ObjectStoreConformance):
    @pytest.fixture
    def store(self, gcs):
        return open_store(gcs.url)

    def test_a_long_listing_is_read_to_its_end(self, root, monkeypatch):
        for number in range(7):
            root.put(f"{number}", b"x")
            root.put(f"dir-{number}/x", b"x")
        call = root._fs.call
        monkeypatch.setattr(
            root._fs, "call", lambda *args, **kwargs: call(*args, maxResults=3, **kwargs)
        )
        assert len(root.list_dir()) == 14

    def test_an_unreachable_server_is_a_sentence(self, gcs, monkeypatch):
        async def at_once(_seconds):
            return None

        monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=at_once))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        with pytest.raises(StorageError, match="does not answer"):
            open_store(gcs.url).get("x")


class TestAzure(CloudConformance, ObjectStoreConformance):
    @pytest.fixture
    def store(self, azure):
        return open_store(azure.url)

    def test_wrong_credentials_are_a_sentence(self, azure, monkeypatch):
        connection = azure.env["AZURE_STORAGE_CONNECTION_STRING"]
        monkeypatch.setenv(
            "AZURE_STORAGE_CONNECTION_STRING", connection.replace(AZURITE_KEY, "d3JvbmctY2FuYXJ5")
        )
        for use in uses(open_store(azure.url)):
            with pytest.raises(StorageError, match="Check the credentials") as caught:
                use()
            assert "d3JvbmctY2FuYXJ5" not in str(caught.value)
            assert "\n" not in str(caught.value)
            assert "<" not in str(caught.value)

    def test_an_unreachable_server_is_a_sentence(self, azure, monkeypatch):
        from azure.storage.blob.aio import ExponentialRetry

        monkeypatch.setattr(ExponentialRetry, "get_backoff_time", lambda *_args: 0)
        connection = azure.env["AZURE_STORAGE_CONNECTION_STRING"]
        monkeypatch.setenv(
            "AZURE_STORAGE_CONNECTION_STRING",
            connection.replace(azure.endpoint, "http://127.0.0.1:9/devstoreaccount1"),
        )
        with pytest.raises(StorageError, match="does not answer"):
            open_store(azure.url).get("x")

    def test_without_an_account_it_says_which_variables_to_set(self, azure, monkeypatch):
        monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
        with pytest.raises(InvalidInputError, match="set AZURE_STORAGE_CONNECTION_STRING"):
            open_store(azure.url)


def test_an_unreachable_s3_is_a_sentence_through_pyarrow_too(s3, monkeypatch):
    """Pyarrow tries for six seconds, whatever it is told."""
    import fsspec

    def refuse(*_args, **_kwargs):
        raise ImportError("s3fs is not installed")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store(s3.url)
    assert isinstance(store, ArrowStore)
    with pytest.raises(StorageError, match="does not answer"):
        store.get("x")
