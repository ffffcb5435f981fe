"""Features and labels: extracts of marts, then one Spark job, point-in-time correct."""
