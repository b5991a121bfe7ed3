"""The Airflow executor on Ray: every task as a job of a Ray cluster. It runs in the scheduler."""
