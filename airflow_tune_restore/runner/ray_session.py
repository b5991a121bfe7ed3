"""The Ray an attempt runs on: a private one of the trial's size, or a cluster that is there already."""

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import signals

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a submitted job (ray.job_config, 2.60)."""

OBJECT_STORE_BYTES = 200 * 1024**2
"""Ray takes 30 % of the machine by default, which a dozen runners on it cannot all have."""


TRIAL_ENV = {"PL_DISABLE_FORK": "1"}
"""What Tune gives every trial (ray.tune.execution.class_cache.DEFAULT_ENV_VARS, 2.60)."""

STARTS = 3
"""How often a private Ray is started before its attempt is given up. Ray waits 30 s for its raylet, which
is fixed (ray._private.node, 2.60) and too short where many start at once on a busy node (seen)."""

logger = logging.getLogger(__name__)


def connect(request: RunnerRequest, asked: Mapping[str, float]) -> None:
    """Start or join Ray; `ray.shutdown` ends either. A private one is as large as what is asked for."""
    import ray

    with signals.kept():
        if request.address is not None:
            ray.init(
                address=request.address,
                runtime_env=_cluster_env(request),
                log_to_driver=True,
            )
        else:
            start(**_private(request, asked))


def join_early(request: RunnerRequest) -> None:
    """Join the cluster before Tune is imported, and have a worker started meanwhile.

    A worker takes as long to start as Tune to be imported. Ray gives one that has not run anything to
    the next actor of its job with the same runtime_env (raylet/worker_pool.cc, 2.60): the trial's. If it
    does not fit (the trial is on another node), it idles for a second and ends.
    """
    connect(request, {})
    import ray

    never = ray.remote(num_cpus=0, runtime_env={"env_vars": TRIAL_ENV})(_never_run).remote()
    time.sleep(0.1)  # until the worker is asked for
    ray.cancel(never)


def _never_run() -> None:
    """Is cancelled before it runs."""


def start(**options: Any) -> None:
    """Start a private Ray with these options of `ray.init`."""
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(**options)
        except Exception as error:  # noqa: BLE001  Ray has no narrower one for this
            if not left:
                raise
            logger.warning("Ray did not start, trying again: %s", error)
            ray.shutdown()
        else:
            return


def _private(request: RunnerRequest, asked: Mapping[str, float]) -> dict[str, Any]:
    """Return the arguments of a Ray as large as what is asked for, in whole CPUs, GPUs and others."""
    amounts = {name: math.ceil(amount) for name, amount in asked.items()}
    cpus, gpus = amounts.pop("CPU", 1), amounts.pop("GPU", 0)
    if request.trial_id == WHOLE_EXPERIMENT:
        # as many trials side by side as fit, as Ray would; in a pod, `cpu_count` tells of its node
        cpus = max(cpus, int(os.environ.get("TUNE_RESTORE_CPUS") or os.cpu_count() or 1))
    memory = amounts.pop("memory", 0)
    store = _object_store(amounts.pop("object_store_memory", 0))
    return {
        "address": "local",  # never a cluster that happens to be named in the environment
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
    """Return as many GPUs as there are and Ray may use.

    Ray starts with no more than it may use, but with any number that are not there
    (ray._private.resource_and_label_spec, 2.60).
    """
    from ray._private import accelerators

    manager = accelerators.get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    there = manager.get_current_node_num_accelerators() if visible is None else len(visible)
    return min(asked, there)


def _object_store(asked: int) -> int:
    """Return the bytes of the object store: as set, and as asked for if half the machine holds that.

    Both, for Ray does not give a trial what objects take up already. The other half is for the trials;
    one that asks for more is refused for want of room.
    """
    from ray._private import utils

    usual = int(os.environ.get("TUNE_RESTORE_OBJECT_STORE_BYTES", OBJECT_STORE_BYTES))
    return usual + asked if asked <= utils.get_system_memory() / 2 else usual


def _memory(asked: int, object_store: int) -> int:
    """Return the memory of a private Ray: what is free, or what is asked for if the machine has that.

    What happens to be free at the start decides nothing: the trials of other tasks may end any time.
    """
    from ray._private import utils

    free = utils.estimate_available_memory() - object_store
    return int(max(free, min(asked, utils.get_system_memory())))


def is_job() -> bool:
    """Whether this process is the driver of a submitted Ray job."""
    return _JOB_CONFIG in os.environ


def is_own_job(request: RunnerRequest) -> bool:
    """Whether the job was submitted for this attempt, to run it on the job's own cluster."""
    return is_job() and request.address is not None


def _cluster_env(request: RunnerRequest) -> dict[str, Any] | None:
    """Let the cluster's workers import what we can import; a private Ray inherits it."""
    if is_job():
        return None  # its runtime_env is that of its workers, too
    return request.runtime_env or _own_path()


def _own_path() -> dict[str, Any]:
    path = os.environ.get("PYTHONPATH", "")
    return {"env_vars": {"PYTHONPATH": path}} if path else {}
