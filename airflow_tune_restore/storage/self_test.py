"""The self-test of what leases stand on: that of many creators of one key only one wins."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from airflow_tune_restore.exceptions import KeyExistsError, StorageError
from airflow_tune_restore.storage.base import OWN_DIRECTORY, ObjectStore

RACERS = 2


def check_exclusive_create(store: ObjectStore) -> None:
    """Refuse a store that lets two creators of one key both win; leases would be worth nothing there.

    They race: many clients only look whether the object exists and then write it, which
    passes when they are asked one after the other. A client whose gap is too short to be hit in one race
    passes this one, too; which stores held in thousands of races is said in docs/reliability.md.

    Raises:
        StorageError: If it does.
    """
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
