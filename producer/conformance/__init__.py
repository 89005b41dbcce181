"""Examines a client of the queue, in any language: `python -m producer.conformance` (docs/conformance.md)."""
