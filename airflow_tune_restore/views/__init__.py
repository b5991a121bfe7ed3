"""Experiments as people see them: values of strict JSON, and the page that draws them. No Airflow."""
