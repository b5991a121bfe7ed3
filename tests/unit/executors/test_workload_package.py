"""The packages of jobs: their names, what is in them, and what a revoked one does."""

import io
import subprocess
import sys
import zipfile

from airflow_tune_restore.executors.workload_package import (
    MODULE,
    build_package,
    build_revoked_package,
    package_name,
    package_uri,
)


def unzip(package: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(package))


def test_its_name_is_computed_from_the_id_of_the_job():
    assert package_name("airflow-1") == "_ray_pkg_13a3d7ca0b2667180a384e95a08daf22.zip"
    assert package_uri("airflow-1") == f"gcs://{package_name('airflow-1')}"
    assert package_name("airflow-2") != package_name("airflow-1")


def test_only_its_user_may_read_the_workload():
    package = unzip(build_package("airflow-1", '{"token": "t"}'))
    modes = {entry.filename: entry.external_attr >> 16 for entry in package.infolist()}
    assert modes == {
        f"{MODULE}/__init__.py": 0o644,
        f"{MODULE}/__main__.py": 0o644,
        f"{MODULE}/workload.json": 0o600,
    }
    assert package.read(f"{MODULE}/workload.json") == b'{"token": "t"}'


def test_the_same_workload_is_the_same_package():
    assert build_package("airflow-1", "{}") == build_package("airflow-1", "{}")


def test_a_revoked_one_runs_nothing_and_ends_well(tmp_path):
    unzip(build_revoked_package("airflow-1")).extractall(tmp_path)
    job = subprocess.run(
        [sys.executable, "-S", "-m", MODULE],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    text = (
        "Airflow took the task of Ray job airflow-1 back while the job waited. Nothing was run.\n"
    )
    assert (job.stdout, job.stderr) == (text, "")
