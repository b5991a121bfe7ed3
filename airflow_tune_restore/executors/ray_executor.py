"""`RayExecutor`: every task of Airflow as a job of a Ray cluster."""
