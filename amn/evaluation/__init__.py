"""Measuring finished models: accuracy, latency, cards, promotion."""
