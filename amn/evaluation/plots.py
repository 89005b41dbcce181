"""Plots of an evaluation as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


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


def all_plots(models: dict[str, Any]) -> Iterator[str]:
    """Cosines, gains by domain, positions and, where it was measured, latency; a model has one colour."""
    judged = {name: entry for name, entry in models.items() if entry["layout"] != "baseline"}
    cosines = {name: entry["cosine"] for name, entry in models.items()}
    yield _intervals("Cosine by slice (bars: 95 % interval by article)", cosines)
    gains = {name: entry["domains"] for name, entry in judged.items()}
    yield _intervals("Gain over the context mean, test articles by domain", gains)
    positions = ("1 oldest", "2", "3", "4", "5 newest")
    changes = {
        name: dict(zip(positions, entry["probes"]["test"]["without_position"], strict=True))
        for name, entry in models.items()
    }
    yield lines("Change of cosine without one position (test)", changes)
    latency = {
        name: {row["batch"]: row["us_per_context"] for row in entry["latency"]}
        for name, entry in judged.items()
        if "latency" in entry
    }
    if latency:
        yield lines("Microseconds a context, by batch size", latency, xscale="log", yscale="log")


def _intervals(title: str, models: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means with their intervals, models side by side in each group."""
    drawn, axes = figure(title)
    for number, (name, groups) in enumerate(models.items()):
        means = [group["mean"] for group in groups.values()]
        below = [max(0.0, group["mean"] - group["low"]) for group in groups.values()]
        above = [max(0.0, group["high"] - group["mean"]) for group in groups.values()]
        at = [i + (number - (len(models) - 1) / 2) * 0.1 for i in range(len(groups))]
        axes.errorbar(at, means, yerr=[below, above], fmt="o", ms=4, lw=1, **_style(number, name))
        axes.set_xticks(range(len(groups)), list(groups), rotation=25)
    return svg(drawn)


def lines(title: str, models: dict[str, dict[Any, float]], **scales: str) -> str:
    """A line of points for each model."""
    drawn, axes = figure(title)
    for number, (name, points) in enumerate(models.items()):
        axes.plot(list(points), list(points.values()), marker="o", ms=3, **_style(number, name))
    axes.set(**scales)
    return svg(drawn)


def _style(number: int, name: str) -> dict[str, Any]:
    base, _, digest = name.partition("@")
    return {"color": f"C{number}", "label": f"{base}@{digest[:4]}" if digest else base}
