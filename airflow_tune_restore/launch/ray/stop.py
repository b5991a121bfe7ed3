"""How a task that is killed gives its trial back: the job saves a snapshot and ends."""

from typing import TYPE_CHECKING

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.follow import ask_to_stop

if TYPE_CHECKING:
    from airflow_tune_restore.launch.ray.jobs_api import RayJobs
    from airflow_tune_restore.storage.base import ObjectStore


def stop_attempt(  # noqa: PLR0913  what is stopped, and where
    store: "ObjectStore",
    jobs: "RayJobs",
    *,
    restore_id: str,
    trial_id: str,
    attempt: int,
    submission_id: str,
    is_one_of_many: bool,
) -> None:
    """Stop an attempt's job; of a run of all trials, stop this trial alone.

    That it was told to stop is written down first: a task that is run again must not take the job, which
    still saves its snapshot, for one to attach to.

    Raises:
        StorageError: If the store is out of reach.
        RayClusterError: If the cluster is.
    """
    if is_one_of_many and trial_id != layout.WHOLE_EXPERIMENT:
        ask_to_stop(store, restore_id, trial_id)
        return
    store.put(layout.stopped_key(restore_id, trial_id, attempt), b"{}")
    jobs.stop(submission_id)
