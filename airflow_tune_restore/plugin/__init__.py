"""The page inside Airflow's UI: an Airflow plugin, its routes and their permissions."""
