"""python -m bench COMMAND: what the figures of the README come from."""

from __future__ import annotations

import importlib

import click

_MODULES = (
    *("everything", "publish", "compare", "drain", "latency", "lone", "peer_latency"),
    *("shares", "cost", "micro", "batch", "capacity", "files", "beside", "gate"),
    *("enlarge", "overhead", "gateway", "memory"),
)


@click.group()
def main() -> None:
    """Measure this machine."""


for _name in _MODULES:
    main.add_command(importlib.import_module(f"bench.{_name}").command)

if __name__ == "__main__":
    main(prog_name="python -m bench")
