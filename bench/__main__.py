"""python -m bench COMMAND: what the figures of the README come from."""

from __future__ import annotations

import click

from bench import compare, drain, gate, latency, micro, peer_latency, shadow, tune


@click.group()
def main() -> None:
    """Measure this machine."""


for _module in (
    drain,
    compare,
    tune,
    latency,
    peer_latency,
    micro,
    gate,
    shadow,
):
    main.add_command(_module.command)

if __name__ == "__main__":
    main(prog_name="python -m bench")
