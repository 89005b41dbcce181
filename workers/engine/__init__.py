"""The engine of every worker: lease, assemble, handle, finish."""
