"""Pages and pictures of what the drift judge found."""
