"""From raw to marts: one dbt build."""
