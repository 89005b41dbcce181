"""`amn drift canary` and `amn drift exemplars`: what the shadow worker keeps for a person."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from amn.files import write_whole
from ops import console
from ops.commands import options
from ops.settings import sample_path
from producer.keys import Keys
from producer.settings import ProducerSettings

#: Rows of the table; the worst come first.
_SHOWN = 20


@click.command()
@options.as_json
@options.server
def canary(as_json: bool, settings: ProducerSettings) -> None:
    """Send the frozen set through the live path now; the shadow worker does so hourly.

    Answers are compared with those of the model's first run. Exit code 1 when nobody answered.
    """
    from workers.shadow.canary import Canary, FrozenSet

    with options.client(settings) as client:
        result = Canary(client, settings, FrozenSet.load(sample_path(None))).run()
    if result is None:
        raise click.ClickException(
            "no AMN worker answered in time; start one (`amn up`), or look at `amn doctor`"
        )
    if as_json:
        console.say_json(asdict(result), indent=2)
        return
    first = "this is its first run: later ones are compared with it"
    compared = "with its first run" if result.golden else first
    console.say(f"{result.model}: {result.n} of {result.asked} items, {compared}")
    console.say(f"mean cosine: in distribution {result.mean_id:.5f}, out of it {result.mean_ood:.5f}")
    if result.golden:
        changed = f"of a cosine {result.max_change:.6f}, of an answer {result.max_distance:.6f}"
        console.say(f"largest change {changed}")
    if result.other or result.failed:
        console.say(f"not compared: {result.other} answered by another model, {result.failed} not at all")


@click.command()
@click.option("--lane", default="", help="Only this lane.")
@click.option(
    "--slice", "slice_", type=click.Choice(["id", "ood", "unsure", "unknown"]), help="Only this one."
)
@click.option("--hours", type=click.IntRange(1, 48), default=24, help="How far back.")
@click.option("--alert", default="", help="The copies that were kept for this alert, instead.")
@click.option("--out", type=options.FILE, help="An .npz for `amn drift replay`.")
@options.as_json
@options.server
def exemplars(
    lane: str,
    slice_: str | None,
    hours: int,
    alert: str,
    out: Path | None,
    as_json: bool,
    settings: ProducerSettings,
) -> None:
    """The requests that were kept whole: ten worst and ten random of each lane, slice and hour."""
    from ops.drift.show.views import exemplars_table
    from workers.shadow.exemplars import Exemplars, as_arrays

    with options.client(settings) as client:
        kept, hour = Exemplars(client, Keys(settings.queue)), client.time()[0] // 3600
        found = kept.frozen(alert) if alert else kept.read(hour - hours + 1, hour)
    found = [one for one in found if lane in ("", one.lane) and slice_ in (None, one.slice)]
    if out is not None:
        arrays = io.BytesIO()
        np.savez_compressed(arrays, **as_arrays(found))  # type: ignore[arg-type]
        write_whole(out, arrays.getvalue())
        console.say(f"{len({one.key for one in found})} requests in {out}", err=True)
    if as_json:
        names = ("kind", "lane", "slice", "minute", "cosine", "fallback", "ood", "model", "key")
        rows = [{name: getattr(one, name) for name in names} for one in found[:_SHOWN]]
        console.say_json(rows, indent=2)
        return
    console.out().print(exemplars_table(found[:_SHOWN]))
    console.say(f"{len(found)} kept")
