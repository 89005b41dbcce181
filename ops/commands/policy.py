"""`amn policy`: show, check, replay and simulate escalation policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amn.policy import DEFAULT, PRESETS_FOLDER, load_policy, presets
from ops import console
from ops.commands import options
from ops.settings import artifacts_folder, sample_path
from producer.keys import Keys
from producer.settings import ProducerSettings


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
@options.server
@options.as_json
def status(settings: ProducerSettings, as_json: bool) -> None:
    """The shared budget and the fallback tiers of a running service."""
    from workers.gate.budget import read_budget
    from workers.gate.tiers import read_tier

    keys = Keys(settings.queue)
    with options.client(settings) as client:
        budget = read_budget(client, keys)
        tiers = {tier: read_tier(client, keys, tier) for tier in ("accuracy", "secondary")}
    if as_json:
        console.say_json({"budget": budget, "tiers": tiers})
        return
    console.say(_budget_line(budget))
    if budget.get("infeasible"):
        console.say("INFEASIBLE: hard rules alone exceed the budget; raise it, or send less to hard lanes")
    for tier, found in tiers.items():
        line = ", ".join(f"{name} {value}" for name, value in found.items()) if found else "no worker lives"
        console.say(f"{tier}: {line}")


def _budget_line(budget: dict[str, float]) -> str:
    if not budget:
        return "budget: nothing settled lately; no AMN worker runs on this queue"
    hard, soft, candidates = (budget[name] / max(budget["n"], 1) for name in "hsw")
    return (
        f"budget: {hard + soft:.2%} of {budget['n']:.0f} requests escalated in the window, "
        f"limit {budget['rate']:.0%} (hard {hard:.2%}, soft {soft:.2%}, "
        f"soft candidates {candidates:.2%}); {budget['tokens']:.1f} in the bucket"
    )


@policy.command()
@click.argument("log", metavar="LOG", type=options.FILE)
@options.policy
@options.as_json
def replay(log: Path, policy: str, as_json: bool) -> None:
    """Run a policy over logged scores: rates by rule, lane and hour; quality where truth is known.

    LOG is what `amn worker amn --decision-log` or `amn calibrate` wrote.
    """
    from ops.gate.backtest import backtest
    from ops.gate.log import read_log

    found = backtest(read_log(log), load_policy(policy))
    console.answer(as_json, found, _show_backtest)


def _show_backtest(found: dict[str, Any]) -> None:
    out, cosine = console.out(), found["cosine"]
    for title in ("rules", "shed"):
        out.print(f"{title}: " + (", ".join(f"{k} {v:.2%}" for k, v in found[title].items()) or "none"))
    rows = {"all": found}
    for part in ("lane", "domain", "hour"):
        rows |= {f"{part} {name}": row for name, row in found[f"{part}s"].items()}
    out.print(
        console.DataTable("", "requests", "flagged", "escalated", "shed", title=found["policy"]).filled(
            (
                name,
                row["requests"],
                *(f"{row[f'{key}_rate']:.2%}" for key in ("flagged", "escalated", "shed")),
            )
            for name, row in rows.items()
        )
    )
    if cosine["n"]:
        out.print(f"cosine with the truth, n = {cosine['n']:,}: AMN {cosine['amn']}, final {cosine['final']}")
    if found["unscored"]:
        out.print(f"{found['unscored']:,} lines lack a score that this policy asks for, and were left out")


@policy.command()
@options.policy
@click.option("--log", type=options.FILE, help="Draw from this decision log.")
@click.option("--hours", default=24.0, type=click.FloatRange(0.1, 240))
@click.option("--rate", default=20.0, type=click.FloatRange(1, 1000), help="Requests/s.")
@click.option("--workers", default=4, type=click.IntRange(1, 64))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@options.artifacts
@options.as_json
def simulate(policy: str, log: Path | None, artifacts: Path | None, as_json: bool, **traffic: Any) -> None:
    """A seeded day of the real gate and budget, on an embedded server and a clock that is told.

    The mix goes from in-distribution to fully out of it and back, with bursts of the hard lanes;
    a worker crashes every half hour. Requests are drawn from the shipped sample, or from a log that
    `amn calibrate` wrote. A day of 20 requests a second takes about two minutes.
    """
    from ops.gate.day import DaySettings
    from ops.gate.day import simulate as simulate_day
    from ops.gate.log import read_log, score_sample
    from ops.local.server import Server, ServerSettings
    from ops.sample import Sample

    chosen, settings = load_policy(policy), DaySettings(**traffic)
    pool = read_log(log) if log else score_sample(Sample.load(sample_path(None)), artifacts_folder(artifacts))
    with Server(ServerSettings()) as server, console.err().status("simulating") as shown:

        def on_second(second: int) -> None:
            if second % 600 == 0:
                shown.update(f"simulating, hour {second / 3600:.1f} of {settings.hours:g}")

        with options.client(ProducerSettings(url=server.url)) as client:
            found = simulate_day(client, chosen, pool, settings, on_second)
    console.say_json(found, indent=None if as_json else 2)
