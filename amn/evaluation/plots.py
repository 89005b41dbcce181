"""Plots of an evaluation as inline SVG."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Models = dict[str, dict[str, Any]]


def figure(title: str) -> tuple[Figure, Axes]:
    """An empty plot in the house's style."""
    drawn = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = drawn.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return drawn, axes


def svg(drawn: Figure) -> str:
    """The figure with its legend as an <svg> element, without a preamble; the same bytes every time."""
    drawn.axes[0].legend(fontsize=7, frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "amn", "svg.fonttype": "none"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _style(models: Models, name: str) -> dict[str, Any]:
    """The colour of a model, the same in all plots, and its short name."""
    base, _, digest = name.partition("@")
    return {"color": f"C{[*models].index(name)}", "label": f"{base}@{digest[:4]}" if digest else base}


def cosine_plot(models: Models, sides: list[str]) -> str:
    """Cosine by slice, with standard errors."""
    drawn, axes = figure("Cosine by slice (bars: one standard error)")
    width = 0.8 / len(models)
    lowest = 1.0
    for number, (name, entry) in enumerate(models.items()):
        places = [i + (number + 0.5) * width - 0.4 for i in range(len(sides))]
        means = [entry["cosine"][side]["mean"] for side in sides]
        errors = [entry["cosine"][side]["standard_error"] for side in sides]
        axes.bar(places, means, width * 0.92, yerr=errors, error_kw={"lw": 1}, **_style(models, name))
        lowest = min(lowest, *means)
    axes.set_ylim(max(0.0, lowest - 0.05), None)
    axes.set_xticks(range(len(sides)), sides)
    return svg(drawn)


def domain_plot(models: Models) -> str:
    """Gain over the context mean on the test articles of each domain."""
    drawn, axes = figure("Gain over the context mean, test articles by domain")
    judged = {name: entry for name, entry in models.items() if entry["layout"] != "baseline"}
    domains: list[str] = []
    for number, (name, entry) in enumerate(judged.items()):
        domains = list(entry["domains"])
        gains = [entry["domains"][domain] for domain in domains]
        bars = [
            [max(0.0, gain["mean"] - gain["low"]) for gain in gains],
            [max(0.0, gain["high"] - gain["mean"]) for gain in gains],
        ]
        places = [i + (number - (len(judged) - 1) / 2) * 0.1 for i in range(len(domains))]
        means = [gain["mean"] for gain in gains]
        axes.errorbar(places, means, yerr=bars, fmt="o", ms=4, lw=1, **_style(models, name))
    axes.axhline(0.0, color="black", lw=0.8)
    axes.set_xticks(range(len(domains)), domains, rotation=25)
    return svg(drawn)


def position_plot(models: Models) -> str:
    """Change of the cosine when one context position is left out."""
    drawn, axes = figure("Change of cosine without one position (test)")
    for name, entry in models.items():
        changes = entry["probes"]["test"]["without_position"]
        axes.plot(range(1, 6), changes, marker="o", ms=3, **_style(models, name))
    axes.axhline(0.0, color="black", lw=0.8)
    axes.set_xticks(range(1, 6), ["1 oldest", "2", "3", "4", "5 newest"])
    return svg(drawn)


def latency_plot(models: Models) -> str:
    """Microseconds a context by batch size; empty when nothing was timed."""
    drawn, axes = figure("Microseconds a context")
    timed = {name: entry["latency"] for name, entry in models.items() if "latency" in entry}
    for name, rows in timed.items():
        sizes = [row["batch"] for row in rows]
        axes.plot(sizes, [row["us_per_context"] for row in rows], marker="o", ms=4, **_style(models, name))
        axes.set(xscale="log", yscale="log", xlabel="batch size")
        axes.set_xticks(sizes, [str(size) for size in sizes])
    return svg(drawn) if timed else ""
