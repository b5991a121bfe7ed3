"""Gives unit tests an Airflow of their own before any of them imports it."""

from tests import airflow_home  # noqa: F401
