"""Gives this process an Airflow of its own before any test imports it; those we start have theirs."""

from tests import airflow_home  # noqa: F401
