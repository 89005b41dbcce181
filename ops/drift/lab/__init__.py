"""Drift in the laboratory: simulated, and two models compared."""
