"""Training, from named recipes to checkpoints."""
