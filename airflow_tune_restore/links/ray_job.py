"""A button on a trial's page that leads to its job in the Ray dashboard."""

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class RayJobLink(BaseOperatorLink):
    """Leads to the job the task follows; what the operator pushed when it found or started it."""

    name = "Ray job"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Return the address; empty where the trial does not run as a Ray job."""
        del operator
        from airflow.sdk.execution_time.xcom import XCom

        url = XCom.get_value(key=URL_KEY, ti_key=ti_key)
        return str(url or "")


URL_KEY = "ray_job_url"
"""XCom key under which the operator pushes the address."""
