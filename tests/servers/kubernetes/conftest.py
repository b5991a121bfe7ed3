"""A cluster for each test, whose pods run without Ray, and clocks that do not wait for long."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  before any test here imports Airflow


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Any]:
    """An emulated cluster that Airflow's connection leads to."""
    from tests.support.kubernetes import pods
    from tests.support.kubernetes.server import cluster

    with cluster() as api, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", pods.connection(api, tmp_path))
        yield api


@pytest.fixture
def new_trial(
    api: Any, failed_experiments: Mapping[str, Path], tmp_path: Path
) -> Callable[..., Any]:
    """Makes a planned trial of a fresh copy of an experiment."""
    from tests.support.kubernetes.stand_in import StandInTrial

    def make(name: str = "errored", **plan: Any) -> Any:
        place = tmp_path / "sweeps" / name
        return StandInTrial(
            api, Path(shutil.copytree(failed_experiments["errored"], place)), **plan
        )

    return make


@pytest.fixture
def trial(new_trial: Callable[..., Any]) -> Any:
    """One planned trial of an experiment with one that failed."""
    return new_trial()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all waits short; how long an outage may last stays as it is."""
    from airflow.providers.cncf.kubernetes.utils import pod_manager

    from airflow_tune_restore.hooks import pods
    from airflow_tune_restore.launch.kubernetes import api, attempt_pod
    from airflow_tune_restore.operators.kubernetes import base
    from airflow_tune_restore.triggers import runner_pod

    brief = SimpleNamespace(**vars(time))
    brief.sleep = lambda seconds: time.sleep(min(seconds, 0.05))
    monkeypatch.setattr(pod_manager, "time", brief)
    for module in (api, pods):
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    for module in (attempt_pod, base, pods):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(pods, "LOG_SECONDS", 1.0)
    monkeypatch.setattr(runner_pod, "FIRST_EVENT_SECONDS", 0.0)
