"""The connection type `ray_jobs`: a Ray cluster's dashboard, its token, and defaults for jobs there.

It also finds the driver of an experiment: a live job whose command line or metadata contains the
experiment's address, or its name as a whole word. Of the job of a restore, and of the job of a task of
Airflow, which names its DAG and task, only the address counts. So an experiment may count as running
although it is not. If no job matches, or if the cluster is out of reach, that is reported and decides
nothing.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_tune_restore.arguments import parse_bool, parse_bytes
from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.evidence import DriverStatus
from airflow_tune_restore.launch.ray.cluster import Cluster, parse_cluster_address
from airflow_tune_restore.launch.ray.jobs_api import RayJob, RayJobs
from airflow_tune_restore.launch.ray.submission import DRIVER_MEMORY_BYTES, DriverResources
from airflow_tune_restore.protocol.printable import counted, printable
from airflow_tune_restore.protocol.ray_job import SUBMISSION_PREFIX, TASK_PREFIX
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.version_compat import (
    ASKING,
    AirflowException,
    AirflowNotFoundException,
)

if TYPE_CHECKING:
    from airflow.sdk import Connection

DEFAULT_CONN_ID = "ray_jobs_default"

_SHORTEST_NAME = 4
"""Shorter names occur in many command lines by chance."""


class RayJobsHook(BaseHook):
    """Connects to the Jobs API of the Ray cluster of a `ray_jobs` connection. Needs no Ray."""

    conn_name_attr = "ray_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "ray_jobs"
    hook_name = "Ray Jobs"

    def __init__(self, ray_conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.ray_conn_id = ray_conn_id

    def cluster(self) -> Cluster:
        """Return address and authentication of the cluster.

        Raises:
            InvalidInputError: If the connection is missing or not valid.
        """
        connection = self._connection
        host = (connection.host or "").strip()
        if not host:
            raise InvalidInputError(
                f"Connection {self.ray_conn_id!r} has no host. Set it to the address of the dashboard, "
                "for example http://ray-head:8265."
            )
        if "://" not in host and connection.schema in ("http", "https"):
            host = f"{connection.schema}://{host}"
        address = parse_cluster_address(host)
        if connection.port:
            before, _, port = address.rpartition(":")
            host = before if port.isdigit() else address
            address = parse_cluster_address(f"{host}:{connection.port}")
        return Cluster(
            address=address,
            token=connection.password,
            verify=parse_bool("verify_tls", self._extra("verify_tls", default=True)),
            ca_file=str(self._extra("ca_file") or "") or None,
        )

    def jobs(self) -> RayJobs:
        """Return the API of the cluster."""
        return RayJobs(self.cluster())

    def runtime_env(self) -> dict[str, Any]:
        """Return the default runtime_env of jobs."""
        return self._mapping("runtime_env")

    def driver_resources(
        self,
        *,
        num_cpus: float | None = None,
        memory: float | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> DriverResources:
        """Return the resources of a job's driver; for None, those of the connection, or the defaults."""
        if num_cpus is None:
            num_cpus = self._extra("entrypoint_num_cpus", default=0)
        if memory is None:
            given = self._extra("entrypoint_memory")
            memory = DRIVER_MEMORY_BYTES if given in (None, "") else given
        if resources is None:
            resources = self._mapping("entrypoint_resources")
        return DriverResources(
            num_cpus=_amount("entrypoint_num_cpus", num_cpus),
            memory=int(parse_bytes("entrypoint_memory", memory)),
            resources={n: _amount(f"entrypoint_resources {n}", a) for n, a in resources.items()},
        )

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the cluster can be used, and a message: the button in Airflow's UI."""
        try:
            jobs = self.jobs()
            version = jobs.version()
            self.runtime_env()
            self.driver_resources()
        except TuneRestoreError as error:
            return False, str(error)
        return True, f"{jobs.cluster.address} runs Ray {version} and accepts the connection."

    @cached_property
    def _connection(self) -> "Connection":
        try:
            with ASKING:
                return BaseHook.get_connection(self.ray_conn_id)
        except AirflowNotFoundException as error:
            raise InvalidInputError(
                f"Airflow has no connection {self.ray_conn_id!r}. Create it, of type ray_jobs, with the "
                "address of the Ray cluster."
            ) from error
        except AirflowException as error:
            text = f"Connection {self.ray_conn_id!r} cannot be read: {type(error).__name__}."
            raise InvalidInputError(text) from error

    def _extra(self, name: str, *, default: Any = None) -> Any:
        value = self._connection.extra_dejson.get(name)
        return default if value is None else value

    def _mapping(self, name: str) -> dict[str, Any]:
        """Read a JSON object; the form in Airflow's UI stores it as text."""
        value = self._extra(name)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                value = name
        if value in (None, ""):
            return {}
        if not isinstance(value, dict):
            text = f"{name} of connection {self.ray_conn_id!r} is not a JSON object."
            raise InvalidInputError(text)
        return value


def driver_jobs(ray_conn_id: str | None) -> Callable[[str], DriverStatus] | None:
    """Return a function that looks for the driver of an experiment (a URI); None without a connection.

    It lists the jobs of the cluster once, at its first call. That may be in a thread of a scan, so the
    connection is read before (`version_compat.in_thread`).
    """
    if not ray_conn_id:
        return None
    listed: list[list[RayJob] | str] = []
    lock = threading.Lock()
    cluster = _find_cluster(ray_conn_id)

    def ask(experiment: str) -> DriverStatus:
        with lock:
            if not listed:
                listed.append(_list_live_jobs(cluster))
        return find_driver(listed[0], experiment)

    return ask


def find_driver(jobs: list[RayJob] | str, experiment: str) -> DriverStatus:
    """Return whether one of the live jobs is the driver of an experiment (a URI).

    A text instead of jobs is why they could not be listed.
    """
    if isinstance(jobs, str):
        return DriverStatus(is_running=False, found=f"the cluster could not be asked: {jobs}")
    for job in jobs:
        if _names(job, experiment):
            name = printable(job.submission_id or job.entrypoint)
            found = f"Ray job {name} names it and is {printable(job.status)}"
            return DriverStatus(is_running=True, found=found)
    return DriverStatus(
        is_running=False, found=f"none of {counted(len(jobs), 'live Ray job')} names it"
    )


def _find_cluster(ray_conn_id: str) -> Cluster | str:
    try:
        return RayJobsHook(ray_conn_id).cluster()
    except TuneRestoreError as error:
        return printable(str(error))


def _list_live_jobs(cluster: Cluster | str) -> list[RayJob] | str:
    if isinstance(cluster, str):
        return cluster
    try:
        return [job for job in RayJobs(cluster).list_all() if not job.is_over]
    except TuneRestoreError as error:
        return printable(str(error))


def _names(job: RayJob, experiment: str) -> bool:
    location = Location.parse(experiment).at("")._replace(options="")
    name = location.name
    patterns = [rf"{re.escape(str(location))}(?![\w.-])"]
    is_ours = (job.submission_id or "").startswith((SUBMISSION_PREFIX, TASK_PREFIX))
    if len(name) >= _SHORTEST_NAME and not is_ours:
        patterns.append(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    texts = [job.entrypoint, *(job.metadata or {}).values()]
    return any(re.search(pattern, text) for pattern in patterns for text in texts)


def _amount(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(f"{name}={value!r} is not a number.") from None
    if not 0 <= number < float("inf"):
        raise InvalidInputError(f"{name}={value!r} is not an amount: 0 or more is needed.")
    return number
