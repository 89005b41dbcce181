"""The messages that cross the queue, as bytes."""
