"""The state that the drift judge keeps on the server."""
