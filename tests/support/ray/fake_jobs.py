"""Stands in for the Jobs API of a Ray cluster."""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job_log import JobLog
from airflow_tune_restore.launch.ray.jobs_api import RayJob


class FakeJobs:
    """Has the methods of `RayJobs`; a job runs until `end`.

    Attributes:
        jobs: The jobs by submission id.
        posted: All submissions.
        stopped: Submission ids of all requests to stop.
        output: The log of every job.
        first_status: Of a new job.
        on_submit: Called with the id of a new job.
        log_error: Raised by `read_log`.
    """

    def __init__(self) -> None:
        self.cluster = Cluster(address="http://head:8265")
        self.jobs: dict[str, RayJob] = {}
        self.posted: list[Mapping[str, Any]] = []
        self.stopped: list[str] = []
        self.output = ""
        self.first_status = "RUNNING"
        self.on_submit: Callable[[str], object] = lambda name: None
        self.log_error: Exception | None = None
        self._lock = threading.Lock()

    def version(self) -> str:
        return "2.60.0"

    def has_package(self, name: str) -> bool:
        return True

    def find(self, name: str) -> RayJob | None:
        return self.jobs.get(name)

    def submit(self, submission: Mapping[str, Any]) -> bool:
        json.dumps(submission)
        name = submission["submission_id"]
        with self._lock:
            if name in self.jobs:
                return False
            self.posted.append(submission)
            self.jobs[name] = RayJob(submission_id=name, status=self.first_status)
        self.on_submit(name)
        return True

    def end(self, status: str = "SUCCEEDED", **fields: Any) -> None:
        for name in self.jobs:
            self.jobs[name] = RayJob(submission_id=name, status=status, **fields)

    def read_log(self, name: str, log: JobLog) -> None:
        if self.log_error is not None:
            raise self.log_error
        log.take(self.output)

    def stop(self, name: str) -> None:
        self.stopped.append(name)
