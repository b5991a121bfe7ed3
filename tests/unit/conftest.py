"""Gives unit tests an Airflow of their own before any of them imports it."""

from tests.support.airflow import home as airflow_home  # noqa: F401
