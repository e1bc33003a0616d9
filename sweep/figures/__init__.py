"""Figures and pages from plain data; knows neither runs nor studies."""
