"""How a restore ended, for a task of it that is run again."""

from airflow_tune_restore.protocol import lease
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.storage.base import ObjectStore


def describe_end(store: ObjectStore, restore_id: str) -> str:
    """Return how a restore ended: another one took it over, or it was committed, or only released."""
    record = read_commit_record(store, restore_id)
    is_committed = record is not None and record.is_done
    if (heir := lease.find_heir(store, restore_id)) is not None:
        commit = " and committed what it had done" if is_committed else ""
        return f"{heir.name} took it over{commit}"
    if record is None or not is_committed:
        return "it was released without a commit"
    name = f" as {record.state_file}" if record.state_file else ""
    return f"it was committed{name}{', and undone later' if record.undone_at else ''}"
