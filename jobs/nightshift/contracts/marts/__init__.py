"""What is expected of the marts that features are made of; columns and types are dbt's."""
