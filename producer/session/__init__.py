"""Requests in flight: sending, waiting, reading replies. Mostly without I/O."""
