"""Figures and pages from plain data. Nothing here depends on runs or studies."""
