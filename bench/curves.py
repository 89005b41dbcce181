"""Percentiles of waiting times by offered load: rows, the objective, and the picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench.machine import spread
from bench.report import COLOURS, Row, draw

OBJECTIVE_MS = 1.2
PERCENTILES = (50, 95, 99)
#: A percentile with fewer requests beyond it in a run says little, and is not shown.
BEYOND = 5
_STYLES = {"ms_p50": ":", "ms_p95": "-", "ms_p99": "--"}


def percentiles(waited_ms: ArrayLike) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds of one run; a time that is not finite does not count."""
    values = np.asarray(waited_ms, float)
    found = np.percentile(values[np.isfinite(values)], PERCENTILES)
    return {f"ms_p{p}": round(float(ms), 3) for p, ms in zip(PERCENTILES, found, strict=True)}


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return of each percentile the median, least and most of the runs."""
    return {name: spread([run[name] for run in runs], 3) for name in _STYLES}


def rows_shown(rows: Iterable[Row], seconds: float, **first: str) -> list[dict[str, Any]]:
    """Return rows of a table; a percentile with too few requests beyond it in `seconds` is a dash."""
    shown = []
    for row in rows:
        few = {f"ms_p{p}": "-" for p in PERCENTILES if row["rate"] * seconds * (100 - p) / 100 < BEYOND}
        texts = {"offered/s" if name == "rate" else name: value for name, value in {**row, **few}.items()}
        shown.append({**first, **texts})
    return shown


def per_second(text: str, saturation_per_s: float) -> float:
    """Return a rate; "60%" is a share of what saturates, to two digits."""
    if not text.endswith("%"):
        return float(text)
    return float(f"{saturation_per_s * float(text[:-1]) / 100:.2g}")


def fast_until(rates: Sequence[Row]) -> float:
    """Return the highest rate whose p95, and that of all below, holds the objective; 0 for none."""
    held = 0.0
    for row in sorted(rates, key=lambda row: row["rate"]):
        if row["ms_p95"]["median"] > OBJECTIVE_MS:
            break
        held = row["rate"]
    return held


def curve(systems: Mapping[str, Sequence[Row]], path: Path, saturation_per_s: float | None = None) -> None:
    """Draw p50, p95 and p99 of each system against the offered load, both logarithmic.

    Args:
        systems: By name, rows with `rate` and percentiles as median, min, max.
        path: The SVG file.
        saturation_per_s: Where a line is drawn.
    """

    from amn.evaluation.plots import plain_ticks  # loads matplotlib

    def plot(axis: Any) -> None:
        for (name, rows), colour in zip(systems.items(), COLOURS, strict=False):
            rates = [row["rate"] for row in rows]
            for figure, style in _STYLES.items():
                medians = [row[figure]["median"] for row in rows]
                text = f"{name}, {figure[3:]}"
                axis.plot(rates, medians, style, marker="o", markersize=3, color=colour, label=text)
            low, high = ([row["ms_p95"][end] for row in rows] for end in ("min", "max"))
            axis.fill_between(rates, low, high, color=colour, alpha=0.12, linewidth=0)
        line = {"color": "#334155", "linewidth": 1}
        axis.axhline(OBJECTIVE_MS, linestyle="--", **line)
        beside = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axis.annotate(f"{OBJECTIVE_MS} ms", (1.0, OBJECTIVE_MS), **beside)
        if saturation_per_s:
            axis.axvline(saturation_per_s, linestyle=":", **line)
            upright = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "top"}
            axis.annotate("saturation", (saturation_per_s, 0.98), **upright)
        axis.set(xscale="log", yscale="log", xlabel="offered requests/s", ylabel="ms from due to answer")
        plain_ticks(axis.xaxis)
        plain_ticks(axis.yaxis)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    draw(path, (9, 4.5), plot)
