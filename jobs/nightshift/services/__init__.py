"""The embedded services: Postgres, Airflow and MLflow's store, under the state folder."""
