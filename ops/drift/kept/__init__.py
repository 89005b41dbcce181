"""What the drift judge keeps on the server."""
