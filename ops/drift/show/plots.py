"""Plots of the report as SVG text that takes the page's text colour, so that it suits dark and light."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ops.drift.measures.statistics import Floats

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells where its cache is
#: Stands for the page's text colour until the SVG is written.
INK = "#010203"
OOD_COLOUR, ID_COLOUR, DELTA_COLOUR, BASE_COLOUR = "#d9822b", "#3d8bd9", "#2a9d6f", "#9a6fd0"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
P = ParamSpec("P")


class Line(NamedTuple):
    """One line of a panel over time; a constant is a level that the others are compared with."""

    ago: Floats
    values: Floats | float
    label: str
    colour: str
    style: str = "-"
    error: Floats | None = None


class Histogram(NamedTuple):
    """Counts by bin of 24 h, of the baseline and perhaps of the last hour, between `low` and `high`."""

    title: str
    colour: str
    now: Floats
    base: Floats
    low: float
    high: float
    recent: Floats | None = None


def _plot(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Draws with our style, leaves matplotlib's as it was, and makes SVG whose ids are its own."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        name, buffer = str(args[0]), io.StringIO()
        with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
            draw(*args, **kwargs).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        text = re.sub(r'^(<svg [^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"\1\2", text)
        text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)  # two figures may hash one alike
        return text.replace("font-family: ", "font-family: system-ui, ").replace("'DejaVu Sans', ", "")

    return drawn


@_plot
def times_plot(name: str, panels: Mapping[str, Sequence[Line]]) -> Figure:
    """Panels by title, one above the other, on one axis of hours before now; bands of two errors."""
    figure = Figure(figsize=(8.2, 0.4 + 1.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for line in lines:
            values, error = np.broadcast_to(line.values, line.ago.shape), line.error
            ax.plot(line.ago, values, line.style, color=line.colour, linewidth=1.4, label=line.label)
            if error is not None:
                low, high = values - 2 * error, values + 2 * error
                ax.fill_between(line.ago, low, high, color=line.colour, alpha=0.25, linewidth=0)
        if np.isnan(lines[0].values).all():
            ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", va="center", alpha=0.7)
        ax.set_title(title)
        ax.legend(loc="best", ncols=4)
    axes[-1].set_xlabel("hours before now")
    return figure


@_plot
def histograms_plot(name: str, panels: Sequence[Histogram]) -> Figure:
    """Shares by bin now (filled), in the baseline and in the last hour (lines), two panels a row."""
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(8.2, 2.7 * rows), layout="constrained")
    for ax, (title, colour, now, base, low, high, recent) in zip(
        figure.subplots(rows, 2, squeeze=False).flat, panels, strict=False
    ):
        counts = {"last 24 h": now, "baseline": base, "last hour": np.zeros(1) if recent is None else recent}
        looks: list[dict[str, Any]] = [
            {"fill": True, "color": colour, "alpha": 0.45},
            {"color": BASE_COLOUR, "linewidth": 1.3},
            {"color": INK, "linewidth": 1, "alpha": 0.8},
        ]
        edges, used = np.linspace(low, high, len(now) + 1), np.zeros(len(now), bool)
        for (label, count), look in zip(counts.items(), looks, strict=True):
            if count.sum():
                ax.stairs(count / count.sum(), edges, label=label, **look)
                used |= count > 0
        if used.any():
            at = np.flatnonzero(used)
            ax.set_xlim(edges[at[0]], edges[at[-1] + 1])
            ax.legend(loc="upper left")
        ax.set_title(title)
    return figure
