"""Fitting the gate on held-out articles, and the report on it."""
