"""`amn drift simulate` and `amn drift replay`: what needs neither a judge nor, mostly, a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.commands.drift.looking import Looking
from ops.drift.settings import JudgeSettings
from ops.settings import producer_settings


@click.command()
@click.option("--drop", "drops", type=float, multiple=True, default=(0.03,), show_default=True)
@click.option("--rate", "rates", type=float, multiple=True, default=(100.0,), show_default=True)
@click.option("--sample", type=click.FloatRange(0.0001, 1), default=0.01, show_default=True)
@click.option(
    "--correlation",
    type=click.FloatRange(0, 0.999),
    default=0.9,
    show_default=True,
    help="Of a request's cosine with the next one's.",
)
@click.option("--ood-share", type=click.FloatRange(0.001, 0.999), default=0.1, show_default=True)
@click.option(
    "--days", type=click.IntRange(2), default=90, show_default=True, help="Healthy days a deployment."
)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Deployments.")
@click.option("--seed", default=0, show_default=True)
@options.as_json
def simulate(
    drops: tuple[float, ...],
    rates: tuple[float, ...],
    sample: float,
    correlation: float,
    ood_share: float,
    days: int,
    repeats: int,
    seed: int,
    as_json: bool,
) -> None:
    """False pages a year and time to a page, on made-up traffic; the card's bare rule beside ours.

    The traffic has neighbours that are alike, a daily rhythm, weekends, a slow wander of both means
    and of the lanes' shares, and truths that never come. --drop and --rate can be repeated.
    """
    from ops.drift.lab.simulate import Healthy, run
    from ops.drift.lab.synthetic import Scenario
    from ops.drift.show.views import show_simulation

    rows: list[dict[str, Any]] = []
    for rate in rates:
        scenario = Scenario(rate_per_s=rate, sample=sample, ood_share=ood_share, correlation=correlation)
        healthy = Healthy(days=days, repeats=repeats, seed=seed)
        rows += [one.to_json() for one in run(scenario, drops, healthy, JudgeSettings())]
    if as_json:
        console.say_json(rows, indent=2)
    else:
        show_simulation(console.out(), rows)


@click.command()
@click.option("--alert", "alert_id", help="Id of an alert whose exemplars were kept (`amn alerts list`).")
@click.option(
    "--exemplars",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An .npz with contexts (N, 5, 768), truths (N, 768), and perhaps lanes and slices. "
    "[default: the shipped sample]",
)
@click.option("--model", type=click.Path(path_type=Path), help="Folder. [default: the production model]")
@click.option("--against", type=click.Path(path_type=Path), help="Folder. [default: the fallback]")
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
    url: str | None,
    queue: str | None,
) -> None:
    """Score the same sequences with two models, and compare pair by pair.

    Because the items are the same, a difference of 0.01 shows in a few hundred of them.
    """
    from amn.predictor import Predictor
    from ops.drift.lab.paired import Sequences, cosines, differences
    from ops.drift.show.views import replay_json, show_replay
    from ops.sample import Sample
    from ops.settings import artifacts_folder, sample_path

    root = artifacts_folder(artifacts)
    if alert_id:
        from ops.commands.drift.sequences import sequences_of

        with Looking(producer_settings(url, queue), JudgeSettings()) as looking:
            chosen = sequences_of(looking.client, looking.keys, alert_id)
    elif exemplars:
        chosen = Sequences.load(exemplars)
    else:
        chosen = Sequences.of_sample(Sample.load(sample_path(None)))
    one = Predictor.open(model or root / "production_model")
    other = Predictor.open(against or root / "fallback_accuracy")
    found = differences(cosines(one, chosen), cosines(other, chosen), chosen)
    if as_json:
        console.say_json(replay_json(one.model_id, other.model_id, found), indent=2)
    else:
        show_replay(console.out(), one.model_id, other.model_id, found)
