"""`amn policy`: show, check, replay and simulate escalation policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amn.policy import DEFAULT, PRESETS_FOLDER, load_policy, presets
from ops import console
from ops.commands import options
from ops.settings import artifacts_folder, sample_path, server_url
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect


@click.group(short_help="Show, check, replay and simulate escalation policies.")
def policy() -> None:
    """Shows and changes which requests a fallback answers, and how many of them.

    \b
    Examples:
      amn policy list
      amn policy show calibrated > mine.toml
      amn policy check mine.toml
      amn policy status
      amn policy replay decisions.jsonl --policy mine.toml
      amn policy simulate
    """


@policy.command("list")
def list_() -> None:
    """The shipped policies, each with what its file says first."""
    for name in presets():
        first = (PRESETS_FOLDER / f"{name}.toml").read_text("utf-8").splitlines()
        said = " ".join(line.lstrip("# ") for line in first if line.startswith("#"))
        mark = " (default)" if name == DEFAULT else ""
        console.say(f"{name}{mark}: {said.split('. ')[0].rstrip('.')}.")


@policy.command()
@click.argument("name", metavar="NAME|FILE", default=DEFAULT)
def show(name: str) -> None:
    """Print a policy's file; a start for one of your own."""
    load_policy(name)
    path = PRESETS_FOLDER / f"{name}.toml" if name in presets() else Path(name)
    click.echo(path.read_text("utf-8"), nl=False)


@policy.command()
@click.argument("name", metavar="NAME|FILE", default=DEFAULT)
@options.artifacts
def check(name: str, artifacts: Path | None) -> None:
    """Check a policy, and say by which id answers would name it."""
    from amn.gate.gain import load_calibration

    checked = load_policy(name)
    calibration = ""
    if checked.needs_calibration:
        calibration = load_calibration(artifacts_folder(artifacts) / "gate_calibration").calibration_id
    console.say(f"{name}: good, {checked.policy_id(calibration)}{f' with {calibration}' * bool(calibration)}")


@policy.command()
@options.url
@options.queue
@options.as_json
def status(url: str | None, queue: str | None, as_json: bool) -> None:
    """The shared budget and the fallback tiers of a running service."""
    from workers.gate.budget import read_budget
    from workers.gate.tiers import read_tier

    settings = ProducerSettings.from_environment(url=server_url(url), queue=queue)
    keys = Keys(settings.queue)
    with options.client(settings) as client:
        budget = read_budget(client, keys)
        tiers = {tier: read_tier(client, keys, tier) for tier in ("accuracy", "secondary")}
    if as_json:
        console.say_json({"budget": budget, "tiers": tiers})
        return
    for line in _budget_lines(budget):
        console.say(line)
    for tier, found in tiers.items():
        line = ", ".join(f"{name} {value}" for name, value in found.items()) if found else "no worker lives"
        console.say(f"{tier}: {line}")


def _budget_lines(budget: dict[str, float]) -> list[str]:
    if not budget:
        return ["budget: nothing settled lately; no AMN worker runs on this queue"]
    n = max(budget["n"], 1)
    shares = {name: budget[name] / n for name in "hsw"}
    lines = [
        f"budget: {shares['h'] + shares['s']:.2%} of {budget['n']:.0f} requests escalated in the window, "
        f"limit {budget['rate']:.0%} (hard {shares['h']:.2%}, soft {shares['s']:.2%}, "
        f"soft candidates {shares['w']:.2%}); {budget['tokens']:.1f} in the bucket"
    ]
    if budget["infeasible"]:
        lines.append("INFEASIBLE: hard rules alone exceed the budget; raise it, or send less to hard lanes")
    return lines


@policy.command()
@click.argument("log", metavar="LOG", type=click.Path(path_type=Path, dir_okay=False))
@options.policy
@options.as_json
def replay(log: Path, policy: str, as_json: bool) -> None:
    """Run a policy over logged scores: rates by rule, lane and hour; quality where truth is known.

    LOG is what `amn worker amn --decision-log` or `amn calibrate` wrote.
    """
    from ops.gate.backtest import replay as replayed
    from ops.gate.log import read_log

    found = replayed(read_log(log), load_policy(policy)).to_json()
    if as_json:
        console.say_json(found)
    else:
        _show_replay(found)


@policy.command()
@options.policy
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Draw from this decision log.")
@click.option("--hours", default=24.0, show_default=True, type=click.FloatRange(0.1, 240))
@click.option("--rate", default=20.0, show_default=True, type=click.FloatRange(1, 1000), help="Requests/s.")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--seed", default=0, show_default=True)
@options.artifacts
@options.as_json
def simulate(policy: str, log: Path | None, artifacts: Path | None, as_json: bool, **traffic: Any) -> None:
    """A seeded day of the real gate and budget, on an embedded server and a clock that is told.

    The mix goes from in-distribution to fully out of it and back, with bursts of the hard lanes;
    a worker crashes every half hour. Requests are drawn from the shipped sample, or from a log that
    `amn calibrate` wrote. A day of 20 requests a second takes about two minutes.
    """
    from ops.gate.day import DaySettings, report
    from ops.gate.day import simulate as run_day
    from ops.gate.log import read_log
    from ops.gate.scored import score_sample
    from ops.local.server import Server, ServerSettings
    from ops.sample import Sample

    chosen, settings = load_policy(policy), DaySettings(**traffic)
    pool = read_log(log) if log else score_sample(Sample.load(sample_path(None)), artifacts_folder(artifacts))
    notes = console.err()
    with Server(ServerSettings()) as server, notes.status("simulating") as shown:
        client = connect(ProducerSettings(url=server.url))

        def on_second(second: int) -> None:
            if second % 600 == 0:
                shown.update(f"simulating, hour {second / 3600:.1f} of {settings.hours:g}")

        day = run_day(client, chosen, pool, settings, on_second)
        client.close()
    found = report(day, pool, chosen)
    console.say_json(found, indent=None if as_json else 2)


def _show_replay(found: dict[str, Any]) -> None:
    out = console.out()
    for title in ("rules", "shed"):
        out.print(f"{title}: " + (", ".join(f"{k} {v:.2%}" for k, v in found[title].items()) or "none"))
    table = console.DataTable("", "requests", "flagged", "escalated", "shed", title=found["policy"])
    rows = {"all": found} | {f"lane {k}": v for k, v in found["lanes"].items()}
    rows |= {f"domain {k}": v for k, v in found["domains"].items()}
    rows |= {f"hour {k}": v for k, v in found["hours"].items()}
    for name, row in rows.items():
        rates = (f"{row[f'{key}_rate']:.2%}" for key in ("flagged", "escalated", "shed"))
        table.add_row(name, f"{row['requests']:,}", *rates)
    out.print(table)
    cosine = found["cosine"]
    if cosine["n"]:
        out.print(f"cosine with the truth, n = {cosine['n']:,}: AMN {cosine['amn']}, final {cosine['final']}")
    if found["unscored"]:
        out.print(f"{found['unscored']:,} lines lack a score that this policy asks for, and were left out")
