"""Asking a Ray cluster whether the driver of an experiment still runs there.

Nothing ties a Ray job to an experiment but what its user wrote: a live job counts as its driver if its
command line, or a value of its metadata, holds the experiment's address, or its name as a word of its
own. That errs on the side of life; a job of ours names the experiment it restores, and no other of the
same name. That no job names it proves nothing, and neither does a cluster that
does not answer: both are said and decide nothing.
"""

import re
import threading
from collections.abc import Callable

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.evidence import DriverStatus
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.launch.ray.jobs_api import RayJob
from airflow_tune_restore.launch.ray.submission import SUBMISSION_PREFIX
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.location import Location

_SHORTEST_NAME = 4
"""A shorter name stands in many a command line by chance."""


def driver_jobs(ray_conn_id: str | None) -> Callable[[str], DriverStatus] | None:
    """Return what answers for experiments (by URI); asks the cluster once, when first asked.

    Args:
        ray_conn_id: Connection of type `ray_jobs`; without one nobody is asked: None.
    """
    if not ray_conn_id:
        return None
    answer: list[list[RayJob] | str] = []
    lock = threading.Lock()

    def ask(experiment: str) -> DriverStatus:
        with lock:
            if not answer:
                answer.append(_live_jobs(ray_conn_id))
        return read_jobs(answer[0], experiment)

    return ask


def read_jobs(jobs: list[RayJob] | str, experiment: str) -> DriverStatus:
    """Say which of a cluster's live jobs runs for an experiment; a text says why it was not asked."""
    if isinstance(jobs, str):
        return DriverStatus(is_running=False, found=f"the cluster could not be asked: {jobs}")
    for job in jobs:
        if _names(job, experiment):
            name = printable(job.submission_id or job.entrypoint)
            return DriverStatus(
                is_running=True, found=f"Ray job {name} names it and is {printable(job.status)}"
            )
    return DriverStatus(is_running=False, found=f"none of {len(jobs)} live Ray jobs names it")


def _live_jobs(ray_conn_id: str) -> list[RayJob] | str:
    try:
        return [job for job in RayJobsHook(ray_conn_id).jobs().list_all() if not job.is_over]
    except TuneRestoreError as error:
        return printable(str(error))


def _names(job: RayJob, experiment: str) -> bool:
    location = Location.parse(experiment).at("")._replace(options="")
    name = location.name
    words = [rf"{re.escape(str(location))}(?![\w.-])"]
    is_ours = (job.submission_id or "").startswith(SUBMISSION_PREFIX)
    if len(name) >= _SHORTEST_NAME and not is_ours:
        words.append(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    texts = [job.entrypoint, *(job.metadata or {}).values()]
    return any(re.search(word, text) for word in words for text in texts)
