"""The section `[ray_executor]` of Airflow's configuration."""

import configparser
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from airflow_tune_restore.arguments import parse_bool
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.executors.runtime_env import merge, parse_runtime_env
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.launch.ray.cluster import Cluster, parse_cluster_address
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.version_compat import CONFIG_ERRORS

SECTION = "ray_executor"
DEFAULT_NUM_CPUS = 1.0
DEFAULT_POLL_INTERVAL = 2.0
_SECRETS = ("token", "runtime_env")


class Configuration(Protocol):
    """An executor's `conf`, which is that of its team: Airflow 3.1 has little more than this."""

    def get(self, *args: Any, **kwargs: Any) -> str | None:
        """As `AirflowConfigParser.get`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """The configuration of the executor by an administrator.

    Args:
        place: The cluster, or the id of a connection to it.
        runtime_env: Of every job; that of the section over that of the connection.
        num_cpus: What the job of a task asks for that does not ask for CPUs itself.
        poll_interval: Seconds between two looks at the jobs.
        delete_jobs: Whether jobs that succeeded are deleted from Ray's list.
    """

    place: Cluster | str
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    num_cpus: float = DEFAULT_NUM_CPUS
    poll_interval: float = DEFAULT_POLL_INTERVAL
    delete_jobs: bool = True

    def cluster(self) -> Cluster:
        """Return the cluster; a connection is read anew, since its token may have changed.

        Raises:
            InvalidInputError: If the connection is missing or not valid.
        """
        return RayJobsHook(self.place).cluster() if isinstance(self.place, str) else self.place


def read_settings(conf: Configuration) -> ExecutorSettings:
    """Read the section, and the connection that it names.

    Airflow (3.1 to 3.4) commits the session of this thread when it reads a connection. Where the
    scheduler forbids that (`prohibit_commit`), the connection seems to be missing. So call this, and
    `cluster()`, in `start()` of the executor or in a thread of its own.

    Raises:
        InvalidInputError: If something is missing or not valid. The text has no token and no variable.
    """
    ray_conn_id, address = _text(conf, "ray_conn_id"), _text(conf, "address")
    if bool(ray_conn_id) is bool(address):
        raise InvalidInputError(
            f"[{SECTION}] ray_conn_id and address are {'both' if address else 'not'} set. Set one of "
            "them: ray_conn_id to a connection of type ray_jobs, or address to the dashboard of the Ray "
            "cluster, such as http://ray-head:8265, and token to its token."
        )
    of_section = parse_runtime_env(f"[{SECTION}] runtime_env", _json(conf, "runtime_env"))
    return ExecutorSettings(
        place=ray_conn_id or _cluster(conf, address),
        runtime_env=merge(_of_connection(ray_conn_id) if ray_conn_id else {}, of_section),
        num_cpus=_number(conf, "num_cpus", DEFAULT_NUM_CPUS, least=0),
        poll_interval=_number(conf, "poll_interval", DEFAULT_POLL_INTERVAL, least=0.1),
        delete_jobs=_flag(conf, "delete_jobs"),
    )


def _of_connection(ray_conn_id: str) -> dict[str, Any]:
    """Return the runtime_env of a connection, whose address is checked, too."""
    hook = RayJobsHook(ray_conn_id)
    try:
        hook.cluster()
        name = f"runtime_env of connection {ray_conn_id!r}"
        return parse_runtime_env(name, hook.runtime_env())
    except InvalidInputError as error:
        raise InvalidInputError(f"[{SECTION}] ray_conn_id: {error}") from None


def _cluster(conf: Configuration, address: str) -> Cluster:
    try:
        parsed = parse_cluster_address(address)
    except InvalidInputError as error:
        raise InvalidInputError(f"[{SECTION}] address: {error}") from None
    return Cluster(
        address=parsed,
        token=_text(conf, "token"),
        verify=_flag(conf, "verify_tls"),
        ca_file=_text(conf, "ca_file") or None,
    )


def _text(conf: Configuration, key: str) -> str:
    try:
        return (conf.get(SECTION, key, fallback="") or "").strip()
    except configparser.InterpolationError:
        text = f"[{SECTION}] {key}: write %% for each % in airflow.cfg."
        raise InvalidInputError(text) from None
    except CONFIG_ERRORS as error:  # the text of a failed command has what it printed
        shown = type(error).__name__ if key in _SECRETS else printable(str(error)).rstrip(".")
        raise InvalidInputError(f"[{SECTION}] {key} cannot be read: {shown}.") from None


def _json(conf: Configuration, key: str) -> Any:
    try:
        return json.loads(_text(conf, key) or "{}")
    except (ValueError, RecursionError):
        return None  # refused by `parse_runtime_env`


def _flag(conf: Configuration, key: str) -> bool:
    return parse_bool(f"[{SECTION}] {key}", _text(conf, key) or True)


def _number(conf: Configuration, key: str, default: float, *, least: float) -> float:
    text = _text(conf, key)
    try:
        number = float(text or default)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise InvalidInputError(
            f"[{SECTION}] {key} = {printable(text, 80)} is not a number of {least:g} or more. Write it "
            f"like {default:g}."
        )
    return number
