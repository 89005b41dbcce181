"""Plots of the report as SVG text that takes the page's text colour, so that it suits dark and light."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.baseline import Reference
from ops.drift.measures.blocks import ALL, HISTOGRAMS
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, W2, Floats, W, X, divergence
from ops.drift.rules.drops import bars
from ops.drift.settings import JudgeSettings
from ops.drift.state import Evaluation

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells where its cache is
HOUR = BLOCKS_PER_DAY // 24
SHOWN_HOURS = 48
#: Cells that are named below their picture.
_NAMED = 5
#: Stands for the page's text colour until the SVG is written.
_INK = "#010203"
_OOD_COLOUR, _ID_COLOUR, _DELTA_COLOUR, _BASE_COLOUR = "#d9822b", "#3d8bd9", "#2a9d6f", "#9a6fd0"
#: The rows of means, errors and evidence.
_ROWS = {"D = OOD - ID": _DELTA_COLOUR, "mean cosine, OOD": _OOD_COLOUR, "mean cosine, ID": _ID_COLOUR}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "lines.linewidth": 1.4,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
#: Beside the title, so that no line runs through the legend.
_ABOVE: Any = {
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "borderaxespad": 0,
    "handlelength": 1.4,
    "columnspacing": 1.2,
}


def means_plot(found: Evaluation, model: str, settings: JudgeSettings) -> str:
    """D and the means by hour beside baseline, last week and D's limit; the fast detector's evidence."""
    traffic, known = found.traffic, found.state.models[model]
    sums, reference = traffic.series[model][ALL], known.baselines.get(ALL)
    hours = min(SHOWN_HOURS, sums.shape[-1] // HOUR)
    ago, means, before = np.arange(-hours, 0.0) + 0.5, means_by_hour(sums, hours), week_before(sums)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.2, 6.8), layout="constrained")
        axes = figure.subplots(4, 1, sharex=True)
        for ax, mean, past, (title, colour) in zip(axes, means, before, _ROWS.items(), strict=False):
            ax.plot(ago, mean, color=colour, label="by hour")
            if np.isfinite(past).any():
                ax.plot(ago, past, "-.", color=_INK, alpha=0.5, label="a week ago")
            ax.set_title(title)
        axes[3].set_title("fast detector: log evidence")
        axes[3].set(xlabel="hours before now", xlim=(-max(hours, 1), 0))
        if reference is None:
            axes[3].text(0.5, 0.5, "There is no baseline yet.", transform=axes[3].transAxes, ha="center")
        else:
            first = traffic.end_block - hours * HOUR
            expected = reference.expected(first, hours * HOUR)
            _beside(axes, ago, means, _errors(sums, hours, reference), expected, settings)
            course = _evidence(sums[..., sums.shape[-1] - hours * HOUR :], first, expected, reference)
            ends = (np.arange(-len(course), 0) + 1) / HOUR
            for name, colour, values in zip(("D", "m_OOD", "m_ID"), _ROWS.values(), course.T, strict=True):
                axes[3].plot(ends, np.maximum(values, -5), color=colour, label=name)
            lanes = sum(of == model for of, _ in found.comparisons)
            bar = bars(settings.pages_per_year, lanes or 1, len(known.detectors) or 1)
            axes[3].axhline(bar.fast_delta, color=_BASE_COLOUR, linestyle="--", label="alarm (D)")
            axes[3].axhline(bar.fast_level, color=_BASE_COLOUR, linestyle=":", label="alarm (means)")
        for ax in axes[: 3 if reference is None else 4]:
            ax.legend(**_ABOVE, ncols=5)
        return _svg(figure, "means")


def _beside(
    axes: Any, ago: Floats, means: Floats, errors: Floats, expected: Floats, settings: JudgeSettings
) -> None:
    """Bands of two standard errors, the baseline, and D's limit."""
    ood, inside = expected.reshape(2, -1, HOUR).mean(-1)
    delta = ood - inside
    for ax, mean, error, base, colour in zip(
        axes, means, errors, (delta, ood, inside), _ROWS.values(), strict=False
    ):
        low, high = mean - 2 * error, mean + 2 * error
        ax.fill_between(ago, low, high, color=colour, alpha=0.25, linewidth=0, label="2 standard errors")
        ax.plot(ago, base, "--", color=_BASE_COLOUR, label="baseline")
    limit = settings.drop_page
    axes[0].plot(ago, delta - limit, ":", color=_BASE_COLOUR, label=f"baseline - {limit:g}")


def means_by_hour(sums: Floats, hours: int) -> Floats:
    """D, mean OOD and mean ID of the last hours of a series (6, 2, T), (3, hours); NaN where not known."""
    known, found = min(hours, sums.shape[-1] // HOUR), np.full((3, hours), np.nan)
    by_hour = _by_hour(sums, known)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = by_hour[X] / by_hour[W]
    found[:, hours - known :] = mean[OOD] - mean[ID], *mean
    return found


def week_before(sums: Floats) -> Floats:
    """The means by hour of a week ago.

    Blocks are kept for eight days, so that there is one for the last 24 h only; NaN elsewhere.
    """
    past = sums[..., : max(sums.shape[-1] - 7 * BLOCKS_PER_DAY, 0)]
    return means_by_hour(past, min(SHOWN_HOURS, sums.shape[-1] // HOUR))


def _errors(sums: Floats, hours: int, reference: Reference) -> Floats:
    """Standard errors of `means_by_hour`."""
    by_hour, noise = _by_hour(sums, hours), reference.noise[:, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        kish = by_hour[W] ** 2 / by_hour[W2]
        # A slice that a mean does not use may be empty.
        return np.asarray(np.sqrt(np.where(noise > 0, noise / kish, 0).sum(1)))


def _by_hour(sums: Floats, hours: int) -> Floats:
    return np.asarray(sums[..., sums.shape[-1] - hours * HOUR :].reshape(6, 2, hours, HOUR).sum(-1))


def _evidence(sums: Floats, first: int, expected: Floats, reference: Reference) -> Floats:
    """The fast detector's evidence after each block, (T, 3), had it begun with the first."""
    state, course = Detector.fresh(first), []
    for at in range(sums.shape[-1]):
        state = state.step(sums[..., at], expected[..., at], reference.noise)
        course.append(state.log_evidence)
    return np.array(course)


def scores_plot(found: Evaluation, model: str) -> tuple[str, str]:
    """Cosines, OOD scores and cells of 24 h against the baseline; and how far the inputs diverged."""
    end, known = found.traffic.end_block, found.state.models[model]
    now, base = {}, {}
    for name, bins in HISTOGRAMS.items():
        now[name] = found.traffic.histogram(model, name, end, BLOCKS_PER_DAY)
        base[name] = np.array(known.histograms.get(name, [0] * bins), dtype=np.float64)
    recent = found.traffic.histogram(model, "score", end, HOUR)
    # A cell's number says nothing: the baseline's most frequent one comes first.
    order = np.argsort(-base["cells"], kind="stable")
    used = order[(now["cells"] + base["cells"])[order] > 0]
    panels: dict[str, tuple[str, float, float, list[Floats]]] = {
        "cosine to the truth, OOD": (_OOD_COLOUR, -1, 1, [h["cosine.ood"] for h in (now, base)]),
        "cosine to the truth, ID": (_ID_COLOUR, -1, 1, [h["cosine.id"] for h in (now, base)]),
        "OOD score of the inputs": (_DELTA_COLOUR, 0, 1, [now["score"], base["score"], recent]),
        "nearest centroid, by the baseline's share": (
            *(_DELTA_COLOUR, 0, max(len(used), 1)),
            [h["cells"][used] for h in (now, base)],
        ),
    }
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.2, 5.4), layout="constrained")
        for ax, (title, panel) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            _histogram(ax, *panel)
            ax.set_title(title)
        return _svg(figure, "scores"), _grown(now, base)


def _histogram(ax: Any, colour: str, low: float, high: float, counts: list[Floats]) -> None:
    """Shares by bin in 24 h (filled), in the baseline and perhaps in the last hour (lines)."""
    looks: dict[str, Any] = {
        "last 24 h": {"fill": True, "color": colour, "alpha": 0.45},
        "baseline": {"color": _BASE_COLOUR},
        "last hour": {"color": _INK, "linewidth": 1},
    }
    edges, used = np.linspace(low, high, len(counts[0]) + 1), np.flatnonzero(sum(counts))
    for count, (label, look) in zip(counts, looks.items(), strict=False):
        if count.sum():
            ax.stairs(count / count.sum(), edges, label=label, **look)
    if len(used):
        ax.set_xlim(edges[used[0]], edges[used[-1] + 1])
        ax.set_ylim(0, 1.25 * ax.dataLim.y1)  # room for the legend above the bars
        ax.legend(loc="upper left", ncols=3)


def _grown(now: dict[str, Floats], base: dict[str, Floats]) -> str:
    """Says how far the inputs diverged, and names the cells that grew most."""
    if not all(counts[name].sum() for counts in (now, base) for name in ("score", "cells")):
        return "There is no baseline of the inputs to compare with yet, or nobody scores them."
    after, before = now["cells"] / now["cells"].sum(), base["cells"] / base["cells"].sum()
    most = [i for i in np.argsort(before - after, kind="stable")[:_NAMED].tolist() if after[i] > before[i]]
    named = ", ".join(f"{i} ({before[i]:.1%} to {after[i]:.1%})" for i in most)
    scores, cells = (divergence(base[name], now[name]) for name in ("score", "cells"))
    return (
        f"Divergence from the baseline over 24 h: OOD scores {scores:.3f}, cells {cells:.3f} bits. "
        f"Cells that grew most: {named or 'none'}."
    )


def _svg(figure: Figure, name: str) -> str:
    """The figure's SVG element, ids its own."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'^(<svg [^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"\1\2", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)  # two figures may hash one alike
    return text.replace("font-family: ", "font-family: system-ui, ").replace("'DejaVu Sans', ", "")
