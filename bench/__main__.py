"""python -m bench COMMAND: what the figures of the README come from."""

from __future__ import annotations

import click

from bench import (
    batch,
    compare,
    cost,
    drain,
    everything,
    floor,
    gate,
    latency,
    limits,
    micro,
    partitions,
    peer_latency,
    publish,
    shadow,
    shares,
    tune,
)


@click.group()
def main() -> None:
    """Measure this machine."""


for _module in (
    drain,
    compare,
    tune,
    latency,
    peer_latency,
    floor,
    limits,
    shares,
    cost,
    partitions,
    micro,
    batch,
    gate,
    shadow,
    everything,
    publish,
):
    main.add_command(_module.command)

if __name__ == "__main__":
    main(prog_name="python -m bench")
