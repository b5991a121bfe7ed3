"""The Ray that an attempt runs on: a private one of the trial's size, or an existing cluster."""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_tune_restore.protocol.layout import RUNS_OF_MANY
from airflow_tune_restore.protocol.ray_job import ADDRESS, IN_CLUSTER
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.protocol.resources import OBJECT_STORE_BYTES
from airflow_tune_restore.runner import signals
from airflow_tune_restore.runner.tune.private_api import replaced

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a submitted job (ray.job_config, 2.60). It has the job's runtime_env, and
`ray.init` uses that for whatever it starts or joins."""

_OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
"""Set to 1, it lets a runtime_env that is given to `ray.init` change that of the job, instead of an error
(ray._private.worker, 2.60)."""

TRIAL_ENV = {"PL_DISABLE_FORK": "1"}
"""The environment that Tune gives every trial (ray.tune.execution.class_cache.DEFAULT_ENV_VARS, 2.60)."""

STARTS = 3
"""Tries to start a private Ray before the attempt fails. Ray waits 30 s for its raylet (fixed in
ray._private.node, 2.60), which can be too short if many start at once on a busy node."""

PRIVATE_ENV = {
    # no workers that wait without the environment of a trial: no trial can use them
    "RAY_prestart_worker_first_driver": "0",
    # nobody can find the port of its metrics, which the dashboard would publish
    "RAY_enable_metrics_collection": "0",
    # a trial that waits is placed within 0.1 s of the end of another one, not within 1 s
    "RAY_gcs_create_placement_group_retry_max_interval_ms": "100",
}
"""Settings of a private Ray's daemons (ray_config_def.h, 2.60), unless the user sets them. An older Ray
ignores those that it lacks."""

_QUIET = {
    # that token authentication is on, and how to turn it off: at every start, also of a private Ray
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
    "ray._private.worker": logging.WARNING,  # that Ray started, or to which cluster it is connected
    "ray.tune.tune": logging.WARNING,  # where results were written: the commit decides that
    "ray.tune.execution.tune_controller": logging.WARNING,  # the name of the seed
}
"""Ray's loggers (2.60) whose lines below these levels help no reader of a trial's log. Levels of Ray's
loggers are the only setting for it: RAY_AUTH_MODE would also silence the hint, and change who may
connect. An older Ray may lack some; then its level changes nothing."""

logger = logging.getLogger(__name__)


def connect(request: RunnerRequest, asked: Mapping[str, float]) -> None:
    """Start a private Ray of the requested size, or join a cluster. `ray.shutdown` ends both."""
    import ray

    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    if not is_own_job(request):
        _leave_job(request.address)
    with signals.without_ray_handler():
        if request.address is not None:
            ray.init(address=request.address, runtime_env=_cluster_env(request), log_to_driver=True)
        else:
            with _without_helpers():
                start(**_private(request, asked))


def join_early(request: RunnerRequest) -> None:
    """Join the cluster before Tune is imported, and start a worker at the same time.

    The start of a worker takes as long as the import of Tune. Ray gives an unused worker to the next
    actor of its job with the same runtime_env (raylet/worker_pool.cc, 2.60), which is the trial's. If
    the trial is on another node, the worker ends after a second.
    """
    connect(request, {})
    import ray

    never = ray.remote(num_cpus=0, runtime_env={"env_vars": TRIAL_ENV})(_never_run).remote()
    time.sleep(0.1)  # until the worker is requested
    ray.cancel(never)


def _never_run() -> None:
    """Do nothing: the task is cancelled before it runs."""


def start(**options: Any) -> None:
    """Start a private Ray with these options of `ray.init`."""
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(**options)
        except Exception as error:  # noqa: BLE001  Ray raises no narrower class here
            if not left:
                raise
            logger.warning("Ray did not start; trying again: %s", error)
            ray.shutdown()
        else:
            return


@contextlib.contextmanager
def _without_helpers() -> Iterator[None]:
    """Start no process of a private Ray that serves only its dashboard or an autoscaler.

    Ray starts both processes even with `include_dashboard=False`, and waits for the first one at the
    start and for both at the end. A Ray that lacks such a method (ray._private.node, 2.60) starts all.
    """
    from ray._private.node import Node

    for name, value in PRIVATE_ENV.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as stack:
        for name in ("start_api_server", "start_monitor"):
            if name in vars(Node):
                stack.enter_context(replaced(Node, name, _start_nothing))
        yield


def _start_nothing(*_arguments: Any, **_options: Any) -> None:
    """Take the place of a method of Ray's `Node` that starts a process."""


def _private(request: RunnerRequest, asked: Mapping[str, float]) -> dict[str, Any]:
    """Return the arguments of `ray.init` for the requested size, in whole CPUs, GPUs and others."""
    amounts = {name: math.ceil(amount) for name, amount in asked.items()}
    cpus, gpus = amounts.pop("CPU", 1), amounts.pop("GPU", 0)
    if request.trial_id in RUNS_OF_MANY:
        # as many trials at once as fit, as in Ray; in a pod, `cpu_count` is that of the node
        gpus = sys.maxsize if gpus else 0
        cpus = max(cpus, int(os.environ.get("TUNE_RESTORE_CPUS") or os.cpu_count() or 1))
    memory = amounts.pop("memory", 0)
    store = _object_store(amounts.pop("object_store_memory", 0))
    return {
        "address": "local",  # never a cluster from RAY_ADDRESS
        "num_cpus": max(1, cpus),
        "num_gpus": _gpus(gpus) if gpus else None,
        "resources": amounts or None,
        "_memory": _memory(memory, store) if memory else None,
        "object_store_memory": store,
        "runtime_env": request.runtime_env or None,
        "include_dashboard": False,
        "log_to_driver": True,
    }


def _gpus(asked: int) -> int:
    """Return the requested number of GPUs, at most those that exist and are visible.

    Ray checks the number against the visible GPUs, but not against those that exist
    (ray._private.resource_and_label_spec, 2.60).
    """
    from ray._private import accelerators

    manager = accelerators.get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    there = manager.get_current_node_num_accelerators() if visible is None else len(visible)
    return min(asked, there)


def _object_store(asked: int) -> int:
    """Return the bytes of the object store: the usual size, and a request of at most half the memory.

    The sum, because Ray does not give used bytes to a trial. The other half of the machine is for the
    trials: a larger request is refused, because no node can hold it.
    """
    from ray._private import utils

    usual = int(os.environ.get("TUNE_RESTORE_OBJECT_STORE_BYTES", OBJECT_STORE_BYTES))
    return usual + asked if asked <= utils.get_system_memory() / 2 else usual


def _memory(asked: int, object_store: int) -> int:
    """Return the memory of a private Ray: the free memory, or the request if the machine has as much.

    Free memory alone must not decide: trials of other tasks may end at any time.
    """
    from ray._private import utils

    free = utils.estimate_available_memory() - object_store
    return int(max(free, min(asked, utils.get_system_memory())))


def is_own_job(request: RunnerRequest) -> bool:
    """Whether this process is a job that runs the attempt on the job's own cluster.

    The runner of a task that is itself a job has the job's variables, too. Its request names no cluster,
    or a cluster by its address.
    """
    return _JOB_CONFIG in os.environ and request.address == IN_CLUSTER


def _leave_job(address: str | None) -> None:
    """Forget the job around this runner, which its task may be, unless it joins the job's cluster.

    The job's runtime_env has packages that only the job's cluster has.
    """
    if _JOB_CONFIG not in os.environ:
        return
    if address == os.environ.get(ADDRESS):
        os.environ.setdefault(_OVERRIDE, "1")
        return
    for name in (_JOB_CONFIG, ADDRESS):
        os.environ.pop(name, None)


def _cluster_env(request: RunnerRequest) -> dict[str, Any] | None:
    """Let workers of the cluster import the same modules; a private Ray inherits the environment."""
    if is_own_job(request):
        return None  # its workers have the same runtime_env
    path = os.environ.get("PYTHONPATH")
    return request.runtime_env or ({"env_vars": {"PYTHONPATH": path}} if path else {})
