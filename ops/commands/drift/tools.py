"""`amn drift simulate` and `amn drift replay`: what needs neither a judge nor, mostly, a server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops import console
from ops.commands import options
from ops.commands.drift.looking import looking
from ops.drift.settings import JudgeSettings

if TYPE_CHECKING:
    from ops.drift.lab.paired import Sequences


@click.command()
@click.option(
    "--drop", "drops", type=click.FloatRange(0, 2), multiple=True, default=(0.03,), show_default=True
)
@click.option(
    "--rate", "rates", type=click.FloatRange(0.001), multiple=True, default=(100.0,), show_default=True
)
@click.option("--sample", type=click.FloatRange(0.0001, 1), default=0.01)
@click.option(
    "--correlation",
    type=click.FloatRange(0, 0.999),
    default=0.9,
    help="Of a request's cosine with the next one's.",
)
@click.option("--ood-share", type=click.FloatRange(0.001, 0.999), default=0.1)
@click.option("--days", type=click.IntRange(2), default=90, help="Healthy days a deployment.")
@click.option("--repeats", type=click.IntRange(1), default=20, help="Deployments.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@options.as_json
def simulate(drops: tuple[float, ...], rates: tuple[float, ...], as_json: bool, **chosen: Any) -> None:
    """False pages a year and time to a page, on made-up traffic; the card's bare rule beside ours.

    The traffic has neighbours that are alike, a daily rhythm, weekends, a slow wander of both means
    and of the lanes' shares, and truths that never come. --drop and --rate can be repeated.
    """
    from ops.drift.lab.simulate import run
    from ops.drift.lab.synthetic import Scenario

    size = {name: chosen.pop(name) for name in ("days", "repeats", "seed")}
    rows = [
        row
        for rate in rates
        for row in run(Scenario(rate_per_s=rate, **chosen), drops, JudgeSettings(), **size)
    ]
    if as_json:
        console.say_json(rows, indent=2)
        return
    names = ("drop>", "false pages/year>", "bare rule's>", "page after (median)>", "90 %>", "never>")
    table = console.DataTable("requests/s", *names, "bare rule's>").filled(
        (
            f"{row['rate_per_s']:g}",
            f"{row['drop']:g}",
            f"{row['false_pages_per_year']:.2f}",
            f"{row['false_pages_per_year_naive']:.2f}",
            _hours(row["delay_h_median"]),
            _hours(row["delay_h_p90"]),
            f"{row['missed']:.0%}",
            f"{_hours(row['delay_h_median_naive'])}, never {row['missed_naive']:.0%}",
        )
        for row in rows
    )
    console.out().print(table, "")
    years, horizon_h = rows[0]["years"], rows[0]["horizon_h"]
    console.say(f"{years:.1f} healthy years a rate; drops are waited for {horizon_h:g} h")


def _hours(value: float | None) -> str:
    """Hours, or minutes below one."""
    if value is None:
        return "-"
    return f"{value * 60:.0f} min" if value < 1 else f"{value:.1f} h"


@click.command()
@click.option("--alert", "alert_id", help="Id of an alert whose exemplars were kept (`amn alerts list`).")
@click.option(
    "--exemplars",
    type=options.FILE,
    help="An .npz with contexts (N, 5, 768), truths (N, 768), and perhaps lanes and slices. "
    "[default: the shipped sample]",
)
@click.option("--model", type=options.PATH, help="Folder. [default: the production model]")
@click.option("--against", type=options.PATH, help="Folder. [default: the fallback]")
@options.as_json
@options.artifacts
@options.url
@options.queue
def replay(
    alert_id: str | None,
    exemplars: Path | None,
    model: Path | None,
    against: Path | None,
    as_json: bool,
    artifacts: Path | None,
    **server: str | None,
) -> None:
    """Score the same sequences with two models, and compare pair by pair.

    Because the items are the same, a difference of 0.01 shows in a few hundred of them.
    """
    from amn.predictor import Predictor
    from ops.drift.lab.paired import cosines, differences
    from ops.settings import artifacts_folder

    root, chosen = artifacts_folder(artifacts), _sequences(alert_id, exemplars, **server)
    folders = (model or root / "production_model", against or root / "fallback_accuracy")
    models = [Predictor.open(folder) for folder in folders]
    one, other = (found.model_id for found in models)
    scores, other_scores = (cosines(found, chosen) for found in models)
    groups = differences(scores, other_scores, chosen)
    if as_json:
        console.say_json({"model": one, "against": other, "groups": groups}, indent=2)
        return
    console.out().print(
        console.DataTable("sequences", "n>", f"{one}>", f"{other}>", "difference>", "99 % CI>").filled(
            (
                row["group"],
                row["n"],
                f"{row['mean']:.4f}",
                f"{row['against']:.4f}",
                f"{row['difference']:+.4f}",
                None if math.isnan(row["low_99"]) else f"{row['low_99']:+.4f} {row['high_99']:+.4f}",
            )
            for row in groups
        )
    )


def _sequences(alert_id: str | None, exemplars: Path | None, **server: str | None) -> Sequences:
    """Those that were kept for an alert, or those of a file, or the shipped sample."""
    from ops.commands.drift.sequences import sequences_of
    from ops.drift.lab.paired import Sequences
    from ops.sample import Sample
    from ops.settings import producer_settings, sample_path

    if alert_id:
        with looking(producer_settings(**server)) as data:
            return sequences_of(data.client, data.keys, alert_id)
    return Sequences.load(exemplars) if exemplars else Sequences.of_sample(Sample.load(sample_path(None)))
