"""Runs one workload of Airflow, as a Ray job: the `__main__` of the package of `workload_package`.

Its text is packed, and it runs on a node of the cluster. So it imports the standard library and the
Airflow of that node only; this package need not be installed there.

The workload holds a token of Airflow's API. It is in no argument and no variable, its file is deleted as
soon as it was read, and it is in no line of output.
"""

import json
import os
import sys
from pathlib import Path

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_URL = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"


def main() -> None:
    """Run the workload beside this file, once.

    The exit code is 0 once Airflow has the end of the task, however it ended; the executor looks no
    further. Otherwise it is 1: `execute_workload` (Airflow 3.1 to 3.4) raises an exception if the API
    server is out of reach or refuses the start of the task, and if a callback failed.
    """
    text = _take(Path(__file__).with_name("workload.json"))
    _leave_package(Path(__file__).parents[1].name)
    try:
        from airflow.executors import workloads
        from airflow.sdk.execution_time.execute_workload import execute_workload
        from pydantic import TypeAdapter, ValidationError
    except ModuleNotFoundError as error:
        sys.exit(
            f"Airflow is not installed in the environment of this Ray job: {error} ({sys.executable}). "
            "Install apache-airflow, in the version of the scheduler, into the image of the Ray cluster, "
            'or name it in the runtime_env of [ray_executor]: {"pip": ["apache-airflow==VERSION"]}.'
        )
    try:
        workload = TypeAdapter(workloads.All).validate_json(text)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)  # the input has the token
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
        sys.exit(
            f"The Airflow of this Ray job cannot read the workload of the scheduler ({problems}). "
            "Install apache-airflow in the version of the scheduler."
        )
    _hide_token(type(workload))
    try:
        execute_workload(workload)  # type: ignore[arg-type]  # of a callback, too, since 3.2
    except Exception as error:
        if not _is_no_answer(error):
            raise
        sys.exit(
            f"Airflow's API server at {os.environ.get(_URL, 'its configured address')} cannot be reached "
            f"from this Ray job: {error}. Set [core] execution_api_server_url, in the configuration of "
            "the scheduler, to an address that the nodes of the Ray cluster can reach."
        )


def _take(path: Path) -> str:
    """Return the text of a file, and delete the file."""
    try:
        text = path.read_text(encoding="utf-8")
        path.unlink()
    except FileNotFoundError:
        sys.exit(
            "This Ray job was started before: its workload was taken then, and is good for one start. "
            "Nothing was run. Airflow decides whether the task gets another try."
        )
    return text


def _leave_package(name: str) -> None:
    """Take this package out of the runtime_env that `ray.init` in the task takes over from its job.

    Other nodes would fetch it for the task's actors, with the token in it (ray.job_config, 2.60).
    """
    config = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    given = config.get("runtime_env") or {}
    others = [uri for uri in given.pop("py_modules", ()) if name not in uri]
    if others:  # Ray cannot set up an empty list
        given["py_modules"] = others
    if config:
        os.environ[_JOB_CONFIG] = json.dumps(config)


def _hide_token(workload: type) -> None:
    """Keep the token out of `repr()`, as Airflow does since 3.2: `execute_workload` logs the workload."""
    token = workload.model_fields.get("token")  # type: ignore[attr-defined]
    if token is not None:
        token.repr = False


def _is_no_answer(error: Exception) -> bool:
    """Whether it is a `RequestError`, of httpx or, since Airflow 3.4, of httpx2."""
    return any(base.__name__ == "RequestError" for base in type(error).__mro__)


if __name__ == "__main__":
    main()
