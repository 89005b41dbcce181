"""The conditions and objectives of the running service, in one table for the judge and for Prometheus."""
