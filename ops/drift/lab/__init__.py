"""Simulated and replayed drift."""
