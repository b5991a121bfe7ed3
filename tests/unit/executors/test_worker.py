"""The program that a Ray job runs: a workload once, and the token of Airflow's API shown nowhere."""

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_tune_restore.executors import worker
from airflow_tune_restore.executors.workload_package import ENTRYPOINT, MODULE, build_package
from tests.support.raw_server import raw_server

TOKEN = "eyJhbGciOiJIUzI1NiJ9.of-the-workload.c2lnbmVk"
WORKLOAD = {
    "type": "ExecuteTask",
    "token": TOKEN,
    "ti": {
        "id": "0193e2a4-0000-7000-8000-000000000001",
        "dag_version_id": "0193e2a4-0000-7000-8000-000000000002",
        "task_id": "train", "dag_id": "night", "run_id": "r", "try_number": 1, "map_index": -1,
        "pool_slots": 1, "queue": "default", "priority_weight": 1, "context_carrier": {},
    },
    "dag_rel_path": "night.py",
    "bundle_info": {"name": "dags-folder", "version": None},
    "log_path": "dag_id=night/attempt=1.log",
}  # fmt: skip


@pytest.fixture
def node(tmp_path) -> Path:
    """A directory with the package as Ray unpacks it."""
    with zipfile.ZipFile(io.BytesIO(build_package("airflow-1", json.dumps(WORKLOAD)))) as package:
        package.extractall(tmp_path)
    return tmp_path


@pytest.fixture
def taken(node, monkeypatch) -> Path:
    """The file of the workload, for a worker that runs in this process."""
    monkeypatch.setattr(worker, "__file__", str(node / MODULE / "__main__.py"))
    return node / MODULE / "workload.json"


def start(node: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command, *arguments = ENTRYPOINT.removeprefix("exec ").split()
    assert command == "python"
    home = {"HOME": str(node), "TMPDIR": str(node), "AIRFLOW_HOME": str(node / "airflow")}
    return subprocess.run(
        [sys.executable, *options, *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(node), **home, **env},
        cwd=node, capture_output=True, text=True, check=False,
    )  # fmt: skip


def places_with_the_token(node: Path) -> list[str]:
    """Return the files of the job, and the commands and variables of all processes, that have it."""
    places = [path for path in node.rglob("*") if path.is_file()]
    for kind in ("cmdline", "environ"):
        places += Path("/proc").glob(f"[0-9]*/{kind}")
    found = []
    for place in places:
        with contextlib.suppress(OSError):  # the process has ended
            if TOKEN.encode() in place.read_bytes():
                found.append(str(place))
    return found


def test_the_token_goes_to_the_api_server_and_nowhere_else(node):
    assert places_with_the_token(node) == [str(node / MODULE / "workload.json")]
    seen = []

    def answer(head: str) -> Iterator[bytes]:
        seen.append((f"Bearer {TOKEN}" in head, places_with_the_token(node)))
        yield from ()  # the server dies

    with raw_server(answer) as server:
        url = f"{server.url}/execution/"
        variables = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": url}
        job = start(node, AIRFLOW__WORKERS__EXECUTION_API_RETRIES="1", **variables)
    assert seen[0] == (True, [])
    assert "Executing workload" in job.stdout
    assert TOKEN not in job.stdout + job.stderr
    assert places_with_the_token(node) == []
    assert f"Airflow's API server at {url} cannot be reached from this Ray job: " in job.stderr
    assert "Traceback" not in job.stderr
    assert job.returncode == 1


def test_a_second_start_runs_nothing(node):
    (node / MODULE / "workload.json").unlink()
    job = start(node)
    assert job.returncode == 1
    assert job.stderr.startswith("This Ray job was started before: ")
    assert len(job.stderr.splitlines()) == 1


def test_a_node_without_airflow_is_named_in_one_line(node):
    job = start(node, "-S")  # without site-packages
    assert job.returncode == 1
    assert job.stderr.startswith(
        "Airflow is not installed in the environment of this Ray job: No mod"
    )
    assert len(job.stderr.splitlines()) == 1


def test_it_needs_nothing_of_this_package():
    assert " airflow_tune_restore" not in Path(worker.__file__).read_text()


def test_a_workload_of_another_airflow_is_refused_without_its_token(taken):
    taken.write_text(json.dumps({**WORKLOAD, "ti": {"id": TOKEN}}))
    with pytest.raises(
        SystemExit, match=r"cannot read the workload .*ti\.task_id: Field required"
    ) as end:
        worker.main()
    assert TOKEN not in str(end.value)
    assert not taken.exists()


@pytest.mark.parametrize("text", ["", f'{{"token": "{TOKEN}"', '{"type": "Other"}'])
def test_a_workload_that_is_none_is_refused(taken, text):
    taken.write_text(text)
    with pytest.raises(SystemExit, match="cannot read the workload") as end:
        worker.main()
    assert TOKEN not in str(end.value)


def test_the_job_succeeds_once_airflow_has_the_end_of_the_task(taken, monkeypatch):
    run = []
    monkeypatch.setattr("airflow.sdk.execution_time.execute_workload.execute_workload", run.append)
    worker.main()
    assert [workload.ti.task_id for workload in run] == ["train"]


def test_another_error_is_raised_as_it_is(taken, monkeypatch):
    def refuse(_workload):
        raise ValueError("Server returned error")

    monkeypatch.setattr("airflow.sdk.execution_time.execute_workload.execute_workload", refuse)
    with pytest.raises(ValueError, match="Server returned error"):
        worker.main()


@pytest.mark.parametrize("others", [[], ["s3://bucket/code.zip"]])
def test_actors_of_the_task_do_not_get_its_package(monkeypatch, others):
    given = {"runtime_env": {"py_modules": [*others, "gcs://_ray_pkg_5e1f.zip"], "pip": ["x"]}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({**given, "metadata": {}}))
    worker._leave_package("_ray_pkg_5e1f")
    left = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]
    assert left == {"pip": ["x"]} | ({"py_modules": others} if others else {})
