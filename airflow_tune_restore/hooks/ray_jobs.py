"""The connection type `ray_jobs`: a Ray cluster's dashboard, its token, and defaults for jobs there."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_tune_restore.arguments import parse_bool, parse_bytes
from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.launch.ray.cluster import Cluster, parse_cluster_address
from airflow_tune_restore.launch.ray.jobs_api import RayJobs
from airflow_tune_restore.launch.ray.submission import DRIVER_MEMORY_BYTES, DriverResources

if TYPE_CHECKING:
    from airflow.sdk import Connection

DEFAULT_CONN_ID = "ray_jobs_default"


class RayJobsHook(BaseHook):
    """Speaks to the Jobs API of the cluster a connection names. Needs no Ray.

    Args:
        ray_conn_id: Connection of type `ray_jobs`.
    """

    conn_name_attr = "ray_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "ray_jobs"
    hook_name = "Ray Jobs"

    def __init__(self, ray_conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.ray_conn_id = ray_conn_id
        self._connection: Connection | None = None

    def cluster(self) -> Cluster:
        """Return where the cluster is.

        Raises:
            InvalidInputError: If the connection does not say so.
        """
        connection = self._read()
        host = (connection.host or "").strip()
        if not host:
            raise InvalidInputError(
                f"Connection {self.ray_conn_id!r} has no host; give it the dashboard's address, as "
                "http://ray-head:8265."
            )
        if "://" not in host and connection.schema in ("http", "https"):
            host = f"{connection.schema}://{host}"
        address = parse_cluster_address(host)
        if connection.port:
            address = parse_cluster_address(
                f"{address.rpartition(':')[0]}:{connection.port}"
                if address.rpartition(":")[2].isdigit()
                else f"{address}:{connection.port}"
            )
        return Cluster(
            address=address,
            token=connection.password or None,
            verify=parse_bool("verify_tls", self._extra("verify_tls", default=True)),
            ca_file=str(self._extra("ca_file") or "") or None,
        )

    def jobs(self) -> RayJobs:
        """Return the API of the cluster."""
        return RayJobs(self.cluster())

    def runtime_env(self) -> dict[str, Any]:
        """Return the runtime_env that jobs get unless told otherwise."""
        return self._mapping("runtime_env")

    def driver_resources(
        self,
        *,
        num_cpus: float | None = None,
        memory: float | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> DriverResources:
        """Return what a job's driver asks for: what is given, else the connection's, else ours."""
        if num_cpus is None:
            num_cpus = _number("entrypoint_num_cpus", self._extra("entrypoint_num_cpus", default=0))
        if memory is None:
            given = self._extra("entrypoint_memory")
            memory = DRIVER_MEMORY_BYTES if given in (None, "") else given
        if resources is None:
            resources = self._mapping("entrypoint_resources")
        return DriverResources(
            num_cpus=_number("entrypoint_num_cpus", num_cpus),
            memory=int(parse_bytes("entrypoint_memory", memory)),
            resources={
                name: _number(f"entrypoint_resources {name}", amount)
                for name, amount in resources.items()
            },
        )

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the cluster lets us in, and what it runs: the button in Airflow's UI."""
        try:
            jobs = self.jobs()
            version = jobs.version()
            self.runtime_env()
            self.driver_resources()
        except TuneRestoreError as error:
            return False, str(error)
        return True, f"{jobs.cluster.address} runs Ray {version} and lets us in."

    def _read(self) -> "Connection":
        if self._connection is None:
            try:
                self._connection = BaseHook.get_connection(self.ray_conn_id)
            except AirflowNotFoundException as error:
                raise InvalidInputError(
                    f"There is no connection {self.ray_conn_id!r} in Airflow; it names the Ray cluster."
                ) from error
            except AirflowException as error:
                raise InvalidInputError(
                    f"Connection {self.ray_conn_id!r} cannot be read: {type(error).__name__}."
                ) from error
        return self._connection

    def _extra(self, name: str, *, default: Any = None) -> Any:
        value = self._read().extra_dejson.get(name)
        return default if value is None else value

    def _mapping(self, name: str) -> dict[str, Any]:
        """Read an object, which the form in Airflow's UI holds as text."""
        value = self._extra(name)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                value = name
        if value in (None, ""):
            return {}
        if not isinstance(value, dict):
            raise InvalidInputError(f"{name} of connection {self.ray_conn_id!r} is no JSON object.")
        return value


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(f"{name}={value!r} is no number.") from None
    if not 0 <= number < float("inf"):
        raise InvalidInputError(f"{name}={value!r} is no amount.")
    return number
