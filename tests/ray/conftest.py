"""Copies of the failed experiments."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  before any test here imports Airflow
from tests.support.experiments.failed import Gate
from tests.support.storage.servers import Server


@pytest.fixture
def copied(failed_experiments: Mapping[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies an experiment to a new place; Ray restores a moved directory there."""

    def copy(kind: str, name: str = "") -> Path:
        return Path(shutil.copytree(failed_experiments[kind], tmp_path / "moved" / (name or kind)))

    return copy


@pytest.fixture
def copied_to_s3(
    failed_experiments: Mapping[str, Path], s3: Server, request: pytest.FixtureRequest
) -> Callable[..., str]:
    """Copies an experiment into the bucket, and returns its URL."""

    def copy(kind: str, name: str = "") -> str:
        return s3.upload(failed_experiments[kind], f"{request.node.name}/{name or kind}")

    return copy


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Trials that have it in their environment stand still after iteration 4 until it is opened."""
    return Gate(tmp_path / "gate-is-open", before=5)


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An emulated cluster that Airflow's connection leads to."""
    from tests.support.kubernetes import pods  # imports much of Airflow, which few tests here need
    from tests.support.kubernetes.server import cluster

    directory = tmp_path_factory.mktemp("kube")
    with cluster() as api, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", pods.connection(api, directory))
        yield api


@pytest.fixture
def api(kubernetes: Any) -> Iterator[Any]:
    """The same, and healthy again afterwards."""
    yield kubernetes
    kubernetes.recover()


@pytest.fixture
def trial(api: Any, copied: Callable[..., Path]) -> Any:
    """One planned trial of an experiment with one that failed, for pods of that cluster."""
    from tests.support.kubernetes.pods import Trial

    return Trial(api, copied("errored"))
