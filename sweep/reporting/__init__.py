"""The report of a study: its figures, tables and commands on one HTML page."""
