"""Gives this process an Airflow of its own before any test imports it; those under test have their own."""

from tests import airflow_home  # noqa: F401
