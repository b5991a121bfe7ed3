"""The Airflow executor on Ray: every task of Airflow as a job of a Ray cluster. It runs in the scheduler."""
