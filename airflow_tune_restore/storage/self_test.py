"""The self-test of a store: of several creators of one key, only one may win. Leases rely on it."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from airflow_tune_restore.exceptions import KeyExistsError, StorageError
from airflow_tune_restore.storage.base import OWN_DIRECTORY, ObjectStore
from airflow_tune_restore.storage.fsspec_store import FsspecStore

RACERS = 2


def check_exclusive_create(store: ObjectStore) -> None:
    """Refuse a store where two creators of one key can both win: leases would not protect there.

    The creators race, because many clients only check whether the object exists and then write it. A very
    short gap between check and write may pass; docs/reliability.md lists stores that passed many races.
    A bucket is tested once per client.

    Raises:
        StorageError: If both win.
    """
    if not isinstance(store, FsspecStore):
        _let_race(store)
        return
    with store.bucket.asking:
        if not store.bucket.creates_exclusively:
            _let_race(store)
            store.bucket.creates_exclusively = True


def _let_race(store: ObjectStore) -> None:
    key = f"{OWN_DIRECTORY}/selftest-{secrets.token_hex(8)}"
    start = threading.Barrier(RACERS)

    def wins(body: bytes) -> bool:
        start.wait()
        try:
            store.create(key, body)
        except KeyExistsError:
            return False
        return True

    try:
        with ThreadPoolExecutor(RACERS) as pool:
            winners = sum(pool.map(wins, [f"racer {number}".encode() for number in range(RACERS)]))
    finally:
        store.delete(key)
    if winners != 1:
        raise StorageError(
            f"{store.uri} does not create objects exclusively ({winners} of {RACERS} racing creators "
            "won), so two restores could run at once. Use a store with conditional puts (AWS S3, MinIO, "
            "SeaweedFS, GCS, Azure) or a local disk."
        )
