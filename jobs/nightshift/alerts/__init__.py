"""Alerts: one message for what fails, one when it works again."""
