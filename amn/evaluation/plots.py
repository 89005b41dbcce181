"""Plots as inline SVG: of an evaluation, and of any values by model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

#: A colour comes again after ten models, with another mark.
_MARKS = "osD^v"


def all_plots(models: dict[str, Any]) -> Iterator[str]:
    """Cosines, gains by domain, positions and, where it was measured, latency."""
    judged = {name: entry for name, entry in models.items() if entry["layout"] != "baseline"}
    cosines = {name: entry["cosine"] for name, entry in models.items()}
    yield plot("Cosine by slice (bars: 95 % interval by article)", cosines)
    gains = {name: entry["domains"] for name, entry in judged.items()}
    yield plot("Gain over the context mean, test articles by domain", gains)
    positions = ("1 oldest", "2", "3", "4", "5 newest")
    changes = {
        name: dict(zip(positions, entry["probes"]["test"]["without_position"], strict=True))
        for name, entry in models.items()
    }
    yield plot("Change of cosine without one position (test)", changes)
    latency = {
        name: {row["batch"]: row["us_per_context"] for row in entry["latency"]}
        for name, entry in judged.items()
        if "latency" in entry
    }
    if latency:
        yield plot("Microseconds a context, by batch size", latency, xscale="log", yscale="log")


def plot(title: str, models: dict[str, dict[Any, Any]], **settings: str) -> str:
    """An <svg> element without a preamble, the same bytes every time.

    Args:
        models: By model, value by number or name; a dict with mean, low and high is a value with an interval.
        settings: Labels and scales of the axes.
    """
    drawn = Figure(figsize=(8.0, 3.9), layout="constrained")
    axes = drawn.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for number, (name, points) in enumerate(models.items()):
        at, values, errors = list(points), list(points.values()), None
        if isinstance(values[0], dict):
            low, mean, high = ([value[key] for value in values] for key in ("low", "mean", "high"))
            values, errors = mean, [_above(mean, low), _above(high, mean)]
        if isinstance(at[0], str):  # named groups, in which models stand side by side
            axes.set_xticks(range(len(at)), at, rotation=25)
            at = [group + 0.1 * (number - (len(models) - 1) / 2) for group in range(len(at))]
        base, _, digest = name.partition("@")
        label = f"{base}@{digest[:4]}" if digest else base
        mark = _MARKS[number // 10 % len(_MARKS)] + ("" if errors else "-")
        axes.errorbar(at, values, yerr=errors, fmt=mark, ms=3, lw=1, label=label, color=f"C{number % 10}")
    axes.set(**settings)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            plain_ticks(axis)
    drawn.legend(fontsize=7, frameon=False, loc="outside right upper")
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "amn", "svg.fonttype": "none"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plain_ticks(axis: Any) -> None:
    """Ticks a logarithmic axis at 1, 2, 5, 10 ..., as plain numbers and not as powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _above(high: list[float], low: list[float]) -> list[float]:
    """The lengths of bars; rounding may put an end on the other side of a mean."""
    return [max(0.0, one - other) for one, other in zip(high, low, strict=True)]
