"""What tests need to know of Airflow's version: where it keeps names, and which tests are for it."""

import airflow
import pytest
from packaging.version import Version

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferred
except ImportError:  # before 3.2
    from airflow.exceptions import AirflowRescheduleException, TaskDeferred

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before 3.2
    from airflow.models.dagbag import DagBag

try:
    from airflow.serialization.serialized_objects import DagSerialization
except ImportError:  # before 3.2
    from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

RELEASE = Version(airflow.__version__).release[:2]
before_3_2 = pytest.mark.skipif(RELEASE >= (3, 2), reason="for Airflow before 3.2")
since_3_2 = pytest.mark.skipif(RELEASE < (3, 2), reason="for Airflow since 3.2")
before_3_3 = pytest.mark.skipif(RELEASE >= (3, 3), reason="for Airflow before 3.3")
since_3_3 = pytest.mark.skipif(RELEASE < (3, 3), reason="for Airflow since 3.3")

__all__ = ["AirflowRescheduleException", "DagBag", "DagSerialization", "TaskDeferred"]
