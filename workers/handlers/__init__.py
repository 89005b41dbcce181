"""What AMN and fallback workers do with a batch."""
