"""Brings failed Ray Tune experiments back from Apache Airflow. Importing this imports nothing."""
