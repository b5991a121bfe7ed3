"""The Ray package that carries the workload of one job.

A package is in no list of jobs, no log and no process table, unlike a command or a variable. Ray stores
it, as every package, for all who may use the cluster. Its name is computed from the job's id. So any
scheduler can replace the package of a job that waits for resources, which Ray cannot stop
(`JobManager.stop_job`, 2.60): if the job starts after all, it finds the package that replaced it.
"""

import functools
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

MODULE = "airflow_tune_restore_workload"
ENTRYPOINT = f"exec python -m {MODULE}"


def package_name(job_id: str) -> str:
    """Return the name of a job's package in the cluster's store."""
    return f"_ray_pkg_{hashlib.sha256(job_id.encode()).hexdigest()[:32]}.zip"


def package_uri(job_id: str) -> str:
    """Return the URI of a job's package, for `py_modules` of its runtime_env."""
    return f"gcs://{package_name(job_id)}"


def build_package(job_id: str, workload_json: str) -> bytes:
    """Return the package of a job that runs a workload."""
    return _zip(job_id, {"__main__.py": _worker(), "workload.json": workload_json})


def build_revoked_package(job_id: str) -> bytes:
    """Return the package of a job that Airflow took back while it waited: it runs nothing."""
    text = f"Airflow took the task of Ray job {job_id} back while the job waited. Nothing was run."
    return _zip(job_id, {"__main__.py": f"print({text!r})\n"})


@functools.cache
def _worker() -> str:
    """Return the program of a package, read once: the scheduler's loop packs it for each task."""
    return Path(__file__).with_name("worker.py").read_text(encoding="utf-8")


def _zip(job_id: str, files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"__init__.py": f"# of Ray job {job_id}\n", **files}.items():
            entry = zipfile.ZipInfo(f"{MODULE}/{name}")
            entry.compress_type = zipfile.ZIP_DEFLATED
            mode = 0o644 if name.endswith(".py") else 0o600  # the workload holds the token
            entry.external_attr = mode << 16
            archive.writestr(entry, text)
    return buffer.getvalue()
