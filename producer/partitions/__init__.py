"""A queue in several partitions behind one producer."""
