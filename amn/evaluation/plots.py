"""Plots of an evaluation as inline SVG."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SIZE = (6.4, 3.9)
COLOURS = ("#2457c5", "#d9822b", "#0a7a3d", "#8e44ad", "#b3261e", "#117a8b", "#7f8c8d", "#b0b7bd")


def figure(title: str) -> tuple[Figure, Axes]:
    """An empty plot in the house's style."""
    drawn = Figure(figsize=SIZE, layout="constrained")
    axes = drawn.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return drawn, axes


def svg(drawn: Figure) -> str:
    """The figure as an <svg> element, without the XML preamble; the same bytes every time."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "amn", "svg.fonttype": "none"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def short(name: str) -> str:
    """A model id for a legend."""
    base, _, digest = name.partition("@")
    return f"{base}@{digest[:4]}" if digest else base.replace("_", " ")


def colour(number: int) -> str:
    """The colour of the n-th model, the same in all plots."""
    return COLOURS[number % len(COLOURS)]


def cosine_plot(result: dict[str, Any]) -> str:
    """Cosine by slice, with standard errors."""
    drawn, axes = figure("Cosine by slice (bars: one standard error)")
    sides = list(result["slices"])
    width = 0.8 / len(result["models"])
    for number, (name, entry) in enumerate(result["models"].items()):
        places = [i + (number + 0.5) * width - 0.4 for i in range(len(sides))]
        means = [entry["cosine"][side]["mean"] for side in sides]
        errors = [entry["cosine"][side]["standard_error"] for side in sides]
        style: dict[str, Any] = {"color": colour(number), "label": short(name)}
        axes.bar(places, means, width * 0.92, yerr=errors, error_kw={"lw": 1}, **style)
    lowest = min(e["cosine"][s]["mean"] for e in result["models"].values() for s in sides)
    axes.set_ylim(max(0.0, lowest - 0.05), None)
    axes.set_xticks(range(len(sides)), sides)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper left")
    return svg(drawn)


def domain_plot(result: dict[str, Any]) -> str:
    """Gain over the context mean on the test articles of each domain."""
    drawn, axes = figure("Gain over the context mean, test articles by domain")
    models = {n: e for n, e in result["models"].items() if e["layout"] != "baseline"}
    domains = list(next(iter(models.values()))["domains"]) if models else []
    for number, (name, entry) in enumerate(models.items()):
        gains = [entry["domains"][domain] for domain in domains]
        means = [gain["mean"] for gain in gains]
        low = [max(0.0, gain["mean"] - gain["low"]) for gain in gains]
        high = [max(0.0, gain["high"] - gain["mean"]) for gain in gains]
        places = [i + (number - (len(models) - 1) / 2) * 0.1 for i in range(len(domains))]
        style: dict[str, Any] = {"color": colour(number), "label": short(name)}
        axes.errorbar(places, means, yerr=[low, high], fmt="o", ms=4, lw=1, **style)
    axes.axhline(0.0, color="#1b1f24", lw=0.8)
    axes.set_xticks(range(len(domains)), domains, rotation=25)
    axes.legend(fontsize=7, frameon=False)
    return svg(drawn)


def position_plot(result: dict[str, Any]) -> str:
    """Loss of cosine when one context position is left out."""
    drawn, axes = figure("Change of cosine without one position (test)")
    for number, (name, entry) in enumerate(result["models"].items()):
        changes = entry["probes"]["test"]["without_position"]
        axes.plot(range(1, 6), changes, marker="o", ms=3, color=colour(number), label=short(name))
    axes.axhline(0.0, color="#1b1f24", lw=0.8)
    axes.set_xticks(range(1, 6), ["1 oldest", "2", "3", "4", "5 newest"])
    axes.legend(fontsize=7, frameon=False)
    return svg(drawn)


def latency_plot(result: dict[str, Any]) -> str:
    """Microseconds a context by batch size; empty when nothing was timed."""
    timed = [(i, n, e) for i, (n, e) in enumerate(result["models"].items()) if "latency" in e]
    if not timed:
        return ""
    drawn, axes = figure(f"Microseconds a context, {result['threads']} thread(s)")
    for number, name, entry in timed:
        sizes = [row["batch"] for row in entry["latency"]]
        costs = [row["us_per_context"] for row in entry["latency"]]
        axes.plot(sizes, costs, marker="o", ms=4, color=colour(number), label=short(name))
    axes.set(xscale="log", yscale="log", xlabel="batch size")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend(fontsize=7, frameon=False)
    return svg(drawn)
