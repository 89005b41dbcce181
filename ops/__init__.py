"""Operates the service: the command `amn`, its server, its jobs, its health."""
