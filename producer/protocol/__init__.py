"""What crosses the queue, as bytes."""
