"""`amn capacity`: the workers, servers, memory and network that a rate of requests takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ops import console
from ops.capacity import SOURCES, Demand, constants, plant
from ops.commands import options
from workers.settings import shipped

_SHARE = click.FloatRange(0, 1)


@click.command(short_help="What a rate of requests takes.")
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(1),
    multiple=True,
    required=True,
    help="Requests a second; may be repeated.",
)
@click.option("--escalated", type=_SHARE, default=0.2, help="Share for a fallback.")
@click.option("--sampled", type=_SHARE, default=0.05, help="Share for the shadow worker.")
@click.option("--busy", type=click.FloatRange(0.05, 1), default=0.7, help="Share of each core in use.")
@click.option(
    "--outage", "outage_s", type=click.FloatRange(0), default=60.0, help="Seconds of waiting requests."
)
@click.option(
    "--report",
    type=options.FILE,
    help="Report of the benchmarks. [default: the published one, artifacts/reports/benchmarks.json]",
)
@click.option(
    "--constants", "shown", is_flag=True, help="Show each constant and the command that measures it."
)
@options.as_json
def capacity(
    rates: tuple[float, ...], report: Path | None, shown: bool, as_json: bool, **asked: float
) -> None:
    """Say how many workers, producers and partitions a rate takes, and how much memory and network.

    Arithmetic on constants that were measured on one machine of two cores: it is a first guess.
    `python -m bench all` measures yours. docs/capacity.md has a table.

    \b
    Examples:
      amn capacity --rate 20000
      amn capacity --rate 1000 --rate 100000 --escalated 0.1
    """
    known = constants(report or shipped("reports/benchmarks.json"))
    found = {rate: asdict(plant(Demand(rate_per_s=rate, **asked), known)) for rate in rates}
    if as_json:
        console.say_json(
            {"constants": known, "plants": [{"rate_per_s": rate, **row} for rate, row in found.items()]}
        )
        return
    rows = ((name, *(_shown(row[name]) for row in found.values())) for name in found[rates[0]])
    console.out().print(console.DataTable("requests/s", *(f"{rate:,.0f}>" for rate in rates)).filled(rows))
    if shown:
        rows = (
            (what, f"{known[name]:,.0f}", f"python -m bench {by}") for name, (what, _, by) in SOURCES.items()
        )
        console.out().print("", console.DataTable("constant", ">", "measured by").filled(rows), sep="\n")


def _shown(figure: float) -> str:
    return (
        f"{figure:,}" if isinstance(figure, int) else f"{figure:,.3g}" if figure < 100 else f"{figure:,.0f}"
    )
