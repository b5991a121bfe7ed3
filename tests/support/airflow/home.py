"""A private Airflow for this test process. Import it before anything of Airflow's.

from tests.support.airflow import home as airflow_home  # noqa: F401  first: it sets AIRFLOW_HOME
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.support import ROOT

DAGS = ROOT / "dags"


def settings(home: Path) -> dict[str, str]:
    """Return the variables of an Airflow that lives in `home` and sees our example DAGs only."""
    return {
        "AIRFLOW_HOME": home.as_posix(),
        "AIRFLOW__CORE__DAGS_FOLDER": DAGS.as_posix(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        # Airflow refuses a DAG in which a task names another one
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,"
        "airflow_tune_restore.executors.ray_executor.RayExecutor",
        # a busy machine takes longer to import a DAG than Airflow's 30 s
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
    }


if "airflow" in sys.modules:  # its settings are read on import
    raise RuntimeError("airflow was imported before tests.support.airflow.home")
HOME = Path(tempfile.mkdtemp(prefix="tune-restore-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN"))]:
    del os.environ[_name]
os.environ.update(settings(HOME))
