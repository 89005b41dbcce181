"""Connections to the server, and what goes over them."""
