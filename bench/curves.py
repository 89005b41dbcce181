"""Latency against load: what was offered, what held, and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import COLOURS, draw

OBJECTIVE_MS = 1.2
_STYLES = {"ms_p50": ":", "ms_p95": "-", "ms_p99": "--"}


def per_second(text: str, saturation_per_s: float) -> float:
    """A rate, or a share of what saturates, to two digits."""
    if not text.endswith("%"):
        return float(text)
    return float(f"{saturation_per_s * float(text[:-1]) / 100:.2g}")


def fast_until(rates: Sequence[Mapping[str, Any]]) -> float:
    """The highest rate measured whose p95, and that of all below, holds the objective; 0 for none."""
    held = 0.0
    for row in sorted(rates, key=lambda row: row["rate"]):
        if row["ms_p95"]["median"] > OBJECTIVE_MS:
            break
        held = row["rate"]
    return held


def curve(
    systems: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, saturation_per_s: float | None = None
) -> None:
    """p50, p95 and p99 of each system against the offered load, both logarithmic.

    Args:
        systems: By name, rows with `rate` and percentiles as median, min, max.
        saturation_per_s: Where a line is drawn.
    """

    def plot(axis: Any) -> None:
        for (name, rows), colour in zip(systems.items(), COLOURS, strict=False):
            rates = [row["rate"] for row in rows]
            for figure, style in _STYLES.items():
                medians = [row[figure]["median"] for row in rows]
                text = f"{name}, {figure[3:]}"
                axis.plot(rates, medians, style, marker="o", markersize=3, color=colour, label=text)
            low, high = ([row["ms_p95"][end] for row in rows] for end in ("min", "max"))
            axis.fill_between(rates, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.axhline(OBJECTIVE_MS, color="#334155", linewidth=1, linestyle="--")
        axis.annotate(
            f"{OBJECTIVE_MS} ms",
            (1.0, OBJECTIVE_MS),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
        )
        if saturation_per_s:
            axis.axvline(saturation_per_s, color="#334155", linewidth=1, linestyle=":")
            axis.annotate(
                "saturation",
                (saturation_per_s, 0.98),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="top",
            )
        axis.set(xscale="log", yscale="log", xlabel="offered requests/s", ylabel="ms from due to answer")
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    draw(path, (9, 4.5), plot)
