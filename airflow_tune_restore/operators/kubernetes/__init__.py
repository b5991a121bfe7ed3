"""Operators that run trials in pods. They build on those of the Kubernetes provider."""

from airflow_tune_restore.exceptions import InvalidInputError

try:
    import airflow.providers.cncf.kubernetes  # noqa: F401  is it there?
except ModuleNotFoundError as error:
    if not (error.name or "").startswith(("airflow.providers", "kubernetes")):
        raise
    raise InvalidInputError(
        "Trials in pods need the package apache-airflow-providers-cncf-kubernetes, which is not "
        "installed where this runs. Install it on every part of Airflow: "
        "pip install 'airflow-tune-restore[kubernetes]'."
    ) from error
