"""Conditions of the running service: one table, for the judge and for Prometheus alike."""
