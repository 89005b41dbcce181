"""A service on this machine: server, workers, children, private files."""
