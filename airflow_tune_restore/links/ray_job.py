"""The link from a task's page to its job in the Ray dashboard."""

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from airflow_tune_restore.launch.base import LauncherName

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

URL_KEY = "ray_job_url"
"""XCom key of the job's address in the dashboard."""


class RayJobLink(BaseOperatorLink):
    """Leads to the job that the task follows."""

    name = "Ray job"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Return the address that the task pushed; "" for a task without a Ray job.

        Airflow calls this in the worker when a task ends (`task_runner.finalize`, Airflow 3.3). A read of
        a missing XCom logs an error, so the XCom is read only for Ray jobs.
        """
        if getattr(operator, "launcher", LauncherName.RAY) != LauncherName.RAY:
            return ""
        from airflow.sdk.execution_time.xcom import XCom

        return str(XCom.get_value(key=URL_KEY, ti_key=ti_key) or "")
