"""Restores in pods: an emulated cluster whose image is this interpreter, and contexts to run operators in."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from tests.experiments import ROOT
from tests.kubernetes_api import NAMESPACE, KubernetesApi, kubernetes_api, rules_of
from tests.restoring import TRAINABLE_ENV
from tests.tasks import FakeTaskInstance

IMAGE = "registry.example.com/sweeps:1"
RBAC = ROOT / "docs" / "kubernetes" / "rbac.yaml"


@contextmanager
def cluster(**image_env: str) -> Iterator[KubernetesApi]:
    """Serve a cluster that allows what the roles in our documentation do, and nothing else."""
    env = {
        **TRAINABLE_ENV,
        "PATH": f"{Path(__import__('sys').executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": ROOT.as_posix(),
        "AWS_EC2_METADATA_DISABLED": "true",
        "TUNE_TEST_HEALED": "1",
        **image_env,
    }
    rules = rules_of(yaml.safe_load_all(RBAC.read_text()))
    with kubernetes_api({IMAGE: env}, rules=rules) as api:
        yield api


def connection(api: KubernetesApi, directory: Path) -> str:
    """Return an Airflow connection to the cluster, as an environment variable holds it."""
    path = api.kubeconfig(directory / "kubeconfig.json")
    return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": path}})


def pod_context(try_number: int = 1, **identity: Any) -> dict[str, Any]:
    """Return a context with what a KubernetesPodOperator reads of it."""
    ti: Any = FakeTaskInstance(try_number=try_number, **identity)
    ti.start_date = datetime.now(UTC)
    return {"ti": ti, "run_id": ti.run_id, "dag": SimpleNamespace(parent_dag=None)}


def arguments(**more: Any) -> dict[str, Any]:
    """Return the arguments of an operator that runs pods on the emulated cluster."""
    return {
        "task_id": "trial",
        "image": IMAGE,
        "namespace": NAMESPACE,
        "base_container_status_polling_interval": 0.2,
        "startup_check_interval_seconds": 1,
        **more,
    }


def base(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runner's container in a pod's spec."""
    return next(c for c in pod["spec"]["containers"] if c["name"] == "base")
