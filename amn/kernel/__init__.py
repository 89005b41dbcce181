"""The compiled loops and their bindings; the callers have the same in NumPy and torch."""
