"""python -m bench COMMAND: what the figures of the README come from."""

from __future__ import annotations

import click

from bench import compare, drain, gate, latency, micro, shadow


@click.group()
def main() -> None:
    """Measure this machine."""


for _command in (
    drain.command,
    compare.command,
    latency.command,
    micro.command,
    gate.command,
    shadow.command,
):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="python -m bench")
