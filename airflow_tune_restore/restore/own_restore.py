"""The restores of one caller: the id that it continues or starts."""

from airflow_tune_restore.exceptions import LeaseLostError, StorageError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.storage.base import ObjectStore

_MAX_RESTORES = 1000
"""Restores of one DAG run. A DAG run is not cleared so often: something else wrote more of them."""


def fresh_restore_id(store: ObjectStore, base: str) -> str:
    """Return `base`, or `base-2`, `base-3` … if restores of that id have ended already.

    Callers make `base` from what identifies their run. So a retry continues its own restore, and the
    same DAG run starts a new one if it is cleared after its commit. A commit that has begun takes no more
    attempts: what a restore of that id ran now would be lost. Without a commit, a restore has ended if it
    has a plan and no lease any more.
    """
    return look_for_own(store, base)[0]


def look_for_own(store: ObjectStore, base: str) -> tuple[str, bool]:
    """Return the id as `fresh_restore_id`, and whether that restore has started: it holds its lease."""
    for number in range(1, _MAX_RESTORES + 1):
        restore_id = base if number == 1 else f"{base}-{number}"
        names = {entry.name for entry in store.list_dir(layout.restore_dir(restore_id))}
        has_begun_commit, has_plan = (
            key(restore_id).rpartition("/")[2] in names
            for key in (layout.commit_key, layout.plan_key)
        )
        if has_begun_commit:
            continue
        if not has_plan:
            return restore_id, False
        if _holds_lease(store, restore_id):
            return restore_id, True
    raise StorageError(
        f"{store.uri} holds {_MAX_RESTORES} restores of the id {base}. Nothing was started. Find out "
        f"what wrote them, then delete them from {layout.ROOT}; or start a new DAG run."
    )


def find_started(store: ObjectStore, base_id: str) -> str | None:
    """Return the id of the restore that an earlier try of the caller started; None without its lease."""
    restore_id = fresh_restore_id(store, base_id)
    return restore_id if _holds_lease(store, restore_id) else None


def _holds_lease(store: ObjectStore, restore_id: str) -> bool:
    try:
        lease.check_held(store, restore_id)
    except LeaseLostError:
        return False
    return True
