"""A study's page: its figures, tables and commands in one HTML file."""
