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

from ops.drift.measures.comparison import Comparison
from ops.drift.measures.hourly import Hours
from ops.drift.measures.statistics import Floats

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells where its cache is
#: Stands for the page's text colour until the SVG is written.
_INK = "#010203"
OOD_COLOUR, ID_COLOUR, DELTA_COLOUR, BASE_COLOUR = "#d9822b", "#3d8bd9", "#2a9d6f", "#9a6fd0"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


P = ParamSpec("P")


class Panel(NamedTuple):
    """One histogram: counts by bin of 24 h and of the baseline, between `low` and `high`.

    `recent` are those of the last hour, where they matter.
    """

    title: str
    now: Floats
    base: Floats
    colour: str
    low: float
    high: float
    recent: Floats | None = None


def _styled(plot: Callable[P, str]) -> Callable[P, str]:
    """Draws with our style and leaves matplotlib's as it was."""

    @wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with mpl.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return drawn


def _figure(rows: int, height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.2, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=columns == 1)


def _svg(figure: Figure, name: str) -> str:
    """The figure's SVG element, ids its own."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    # Two figures may hash an element alike.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
    return text.replace("font-family: ", "font-family: system-ui, ").replace("'DejaVu Sans', ", "")


@_styled
def means_plot(hours: Hours, week_before: Floats, drop_page: float) -> str:
    """m_OOD, m_ID and D of 48 h with two standard errors, the baseline, last week, and D's limit."""
    figure, axes = _figure(3, 6.2)
    titles = ("mean cosine, OOD", "mean cosine, ID", "D = OOD - ID")
    for row, (title, colour) in enumerate(zip(titles, (OOD_COLOUR, ID_COLOUR, DELTA_COLOUR), strict=True)):
        ax = axes[row][0]
        mean, error = hours.mean[row], 2 * hours.error[row]
        ax.fill_between(hours.ago, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        ax.plot(hours.ago, mean, color=colour, linewidth=1.6, label="by hour, with 2 standard errors")
        base = {"color": BASE_COLOUR, "linewidth": 1.2}
        ax.plot(hours.ago, hours.expected[row], linestyle="--", label="baseline", **base)
        if np.isfinite(week_before[row]).any():
            ax.plot(hours.ago, week_before[row], color=_INK, alpha=0.5, linewidth=1, label="a week ago")
        if row == 2:
            limit = hours.expected[row] - drop_page
            ax.plot(hours.ago, limit, linestyle=":", label=f"baseline - {drop_page:g}", **base)
        ax.set_title(title)
        ax.legend(loc="best", ncols=4)
    axes[2][0].set_xlabel("hours before now")
    return _svg(figure, "means")


@_styled
def evidence_plot(ago: Floats, course: Floats, needed: Mapping[str, float]) -> str:
    """log M of the fast detector, and what an alarm needs."""
    figure, axes = _figure(1, 2.6)
    ax = axes[0][0]
    names = (("D", DELTA_COLOUR), ("m_OOD", OOD_COLOUR), ("m_ID", ID_COLOUR))
    for row, (name, colour) in enumerate(names):
        ax.plot(ago, np.maximum(course[row], -5), color=colour, linewidth=1.4, label=name)
    ax.axhline(needed["delta"], color=BASE_COLOUR, linestyle="--", linewidth=1.1, label="alarm (D)")
    ax.axhline(needed["mean"], color=BASE_COLOUR, linestyle=":", linewidth=1.1, label="alarm (means)")
    ax.set_title("fast detector: log evidence for a drop")
    ax.set_xlabel("hours before now")
    ax.legend(loc="upper left", ncols=5)
    return _svg(figure, "evidence")


@_styled
def strips_plot(ago: Floats, strips: Sequence[tuple[str, Floats, float | None]]) -> str:
    """One thin panel each: title, share by hour, and a limit."""
    figure, axes = _figure(len(strips), 1.3 * len(strips) + 0.4)
    for row, (title, values, limit) in enumerate(strips):
        ax = axes[row][0]
        if len(values) == len(ago):
            ax.plot(ago, 100 * values, color=ID_COLOUR, linewidth=1.4)
        if np.isnan(values).all():
            ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", va="center", alpha=0.7)
        if limit is not None:
            ax.axhline(100 * limit, color=BASE_COLOUR, linestyle="--", linewidth=1)
        ax.set_ylim(bottom=0)
        ax.set_title(title)
        ax.set_ylabel("%")
    axes[-1][0].set_xlabel("hours before now")
    return _svg(figure, "strips")


@_styled
def lanes_plot(lanes: Mapping[str, Comparison], drop_page: float) -> str:
    """The drop of each lane's delta with its 99 % interval, the largest first."""
    ordered = sorted(lanes.items(), key=lambda item: item[1].delta.value)
    figure, axes = _figure(1, 0.9 + 0.36 * max(len(ordered), 1))
    ax = axes[0][0]
    for y, (_, seen) in enumerate(ordered):
        low, high = seen.delta.interval
        ax.plot([low, high], [y, y], color=DELTA_COLOUR, linewidth=2, alpha=0.35 if seen.lacks else 1)
        ax.plot(seen.delta.value, y, "o", color=DELTA_COLOUR, markersize=5)
    ax.axvline(drop_page, color=BASE_COLOUR, linestyle="--", linewidth=1)
    ax.axvline(0, color=_INK, linewidth=0.6)
    ax.set_yticks(range(len(ordered)), [name or "all lanes" for name, _ in ordered])
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    ax.set_title("drop of D over 24 h by lane, 99 % interval (faint: too little data)")
    return _svg(figure, "lanes")


@_styled
def histograms_plot(panels: Sequence[Panel], name: str) -> str:
    """Shares by bin now (filled) and in the baseline (line)."""
    figure, axes = _figure(1, 2.7, columns=max(len(panels), 1))
    for column, (title, now, base, colour, low, high, recent) in enumerate(panels):
        ax = axes[0][column]
        edges = np.linspace(low, high, len(now) + 1)
        used = np.flatnonzero(now + (base if len(base) == len(now) else 0))
        if now.sum():
            ax.stairs(now / now.sum(), edges, fill=True, color=colour, alpha=0.45, label="last 24 h")
        if base.sum():
            ax.stairs(base / base.sum(), edges, color=BASE_COLOUR, linewidth=1.3, label="baseline")
        if recent is not None and recent.sum():
            ax.stairs(recent / recent.sum(), edges, color=_INK, linewidth=1, alpha=0.8, label="last hour")
            used = np.union1d(used, np.flatnonzero(recent))
        if len(used):
            ax.set_xlim(edges[used[0]], edges[used[-1] + 1])
        ax.set_title(title)
        if now.sum() or base.sum():
            ax.legend(loc="upper left")
    return _svg(figure, name)
