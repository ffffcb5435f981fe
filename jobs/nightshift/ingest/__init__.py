"""Landing zone to raw tables: contract check, quarantine, COPY, one ledger row a file."""
