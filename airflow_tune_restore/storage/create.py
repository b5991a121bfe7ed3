"""The self-test of what leases stand on: that of two creators of one key only one wins."""

import secrets

from airflow_tune_restore.exceptions import KeyExistsError, StorageError
from airflow_tune_restore.storage.base import ObjectStore


def check_exclusive_create(store: ObjectStore) -> None:
    """Refuse a store that lets two creators of one key both win; leases would be worth nothing there.

    Raises:
        StorageError: If it does.
    """
    key = f".tune_restore/selftest-{secrets.token_hex(8)}"
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except KeyExistsError:
        return
    finally:
        store.delete(key)
    raise StorageError(
        f"{store.uri} does not create objects exclusively, so two restores could run at once. "
        "Use a store with conditional puts (AWS S3, MinIO, SeaweedFS, GCS, Azure) or a local disk."
    )
