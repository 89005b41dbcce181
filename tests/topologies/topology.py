"""Servers that belong together: sentinels and what they watch, the nodes of a cluster, a CA's files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Certificates:
    """PEM files of one CA: its own, and those that it signed."""

    ca: str
    other_ca: str
    server: str
    server_key: str
    client: str
    client_key: str
