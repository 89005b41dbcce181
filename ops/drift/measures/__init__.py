"""The statistics of the drift judge."""
