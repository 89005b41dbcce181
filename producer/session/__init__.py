"""The state of one producer with the server of each queue, and its I/O."""
