"""Tables and plots of the comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.compare import OURS, ratios


def write_comparison(report: Mapping[str, Any], out: Path) -> None:
    """Writes compare.json, compare.md and compare.svg, and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    text = table(report)
    (out / "compare.md").write_text(text, "utf-8")
    bars(report, out / "compare.svg")
    click.echo(text)
    click.echo(f"written: {out}/compare.json, compare.md, compare.svg", err=True)


def table(report: Mapping[str, Any]) -> str:
    """Markdown, the fastest first."""
    lines = []
    try:
        found = ratios(report)
        lines += [
            f"One worker on one core drains **{found['drain_per_s']:.1f} times** as many requests a second "
            f"as the best of the others; one producer enqueues **{found['enqueue_per_s']:.1f} times** as "
            "many.",
            "",
        ]
    except ValueError:
        pass  # a run of some systems only
    lines += [
        "| system | version | workers | drained/s, median (min, max) | enqueued/s, median (min, max) | how |",
        "|---|---|---:|---:|---:|---|",
    ]
    order = sorted(report["systems"], key=lambda s: (s["workers"], -s["drain_per_s"]["median"]))
    for s in order:
        lines.append(
            f"| {_shown(s['system'])} | {report['versions'][s['system']]} | {s['workers']} | "
            f"{_spread(s['drain_per_s'])} | {_spread(s['enqueue_per_s'])} | {report['notes'][s['system']]} |"
        )
    lines += [f"\nfailed: {name}: {why}" for name, why in report["failures"].items()]
    facts = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    repeats = min((s["repeats"] for s in report["systems"]), default=0)
    lines += [
        "",
        f"15,360-byte contexts, model and gate for each, answers stored; {repeats} runs or more. {facts}.",
    ]
    return "\n".join(lines) + "\n"


def bars(report: Mapping[str, Any], path: Path) -> None:
    """Throughput of one worker, logarithmic, ours in another colour."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    systems = sorted(
        (s for s in report["systems"] if s["workers"] == 1), key=lambda s: s["drain_per_s"]["median"]
    )
    if not systems:
        return
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.45 * len(systems) + 1.4), sharey=True)
    for axis, name, title in zip(
        axes, ("drain_per_s", "enqueue_per_s"), ("answered/s, one worker", "enqueued/s"), strict=True
    ):
        _bars(axis, systems, name)
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _bars(axis: Any, systems: Sequence[Mapping[str, Any]], name: str) -> None:
    medians = [s[name]["median"] for s in systems]
    low = [m - s[name]["min"] for m, s in zip(medians, systems, strict=True)]
    high = [s[name]["max"] - m for m, s in zip(medians, systems, strict=True)]
    colours = ["#c2410c" if s["system"] == OURS else "#64748b" for s in systems]
    labels = [_shown(s["system"]) for s in systems]
    axis.barh(labels, medians, xerr=[low, high], color=colours, error_kw={"elinewidth": 1})
    axis.set_xscale("log")
    axis.spines[["top", "right"]].set_visible(False)
    for i, median in enumerate(medians):
        axis.text(median * 1.15, i, f"{median:,.0f}", va="center", fontsize=8)
    axis.set_xlim(right=max(medians) * 4)


def _shown(system: str) -> str:
    return system.replace("_", " ") if system != OURS else "amn-queue"


def _spread(figures: Mapping[str, float]) -> str:
    return f"{figures['median']:,.0f} ({figures['min']:,.0f}, {figures['max']:,.0f})"
