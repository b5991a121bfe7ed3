"""What people see of experiments: values of strict JSON, and the page that draws them. No Airflow."""
