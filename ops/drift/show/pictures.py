"""The panels of the report: means and evidence over 48 h, histograms over 24 h."""

from __future__ import annotations

import numpy as np

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.baseline import Reference
from ops.drift.measures.blocks import ALL, HISTOGRAMS
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, W2, Floats, W, X, divergence
from ops.drift.rules.drops import bars
from ops.drift.settings import JudgeSettings
from ops.drift.show.plots import (
    BASE_COLOUR,
    DELTA_COLOUR,
    ID_COLOUR,
    INK,
    OOD_COLOUR,
    Histogram,
    Line,
)
from ops.drift.state import Evaluation

HOUR = BLOCKS_PER_DAY // 24
SHOWN_HOURS = 48
#: Cells that are named below their picture.
_NAMED = 5
#: The rows of means, errors and evidence.
_ROWS = {"D = OOD - ID": DELTA_COLOUR, "mean cosine, OOD": OOD_COLOUR, "mean cosine, ID": ID_COLOUR}


def courses(found: Evaluation, model: str, settings: JudgeSettings) -> dict[str, list[Line]]:
    """D and the means by hour beside baseline, last week and D's limit; the fast detector's evidence."""
    traffic, known = found.traffic, found.state.models[model]
    sums, reference = traffic.series[model][ALL], known.baselines.get(ALL)
    hours = min(SHOWN_HOURS, sums.shape[-1] // HOUR)
    ago, means, before = np.arange(-hours, 0.0) + 0.5, means_by_hour(sums, hours), week_before(sums)
    error = None if reference is None else _errors(sums, hours, reference)
    panels = {
        title: [Line(ago, means[i], "by hour", colour, error=None if error is None else error[i])]
        for i, (title, colour) in enumerate(_ROWS.items())
    }
    for i, lines in enumerate(panels.values()):
        if np.isfinite(before[i]).any():
            lines.append(Line(ago, before[i], "a week ago", INK, "-."))
    if reference is None:
        return panels
    blocks = hours * HOUR
    first = traffic.end_block - blocks
    expected = reference.expected(first, blocks)
    by_hour = expected.reshape(2, hours, HOUR).mean(-1)
    for lines, base in zip(panels.values(), (by_hour[OOD] - by_hour[ID], *by_hour), strict=True):
        lines.append(Line(ago, base, "baseline", BASE_COLOUR, "--"))
    limit, label = by_hour[OOD] - by_hour[ID] - settings.drop_page, f"baseline - {settings.drop_page:g}"
    panels["D = OOD - ID"].append(Line(ago, limit, label, BASE_COLOUR, ":"))
    lanes = sum(name == model for name, _ in found.comparisons)
    bar = bars(settings.pages_per_year, lanes or 1, len(known.detectors) or 1)
    state, course = Detector.fresh(first), np.full((3, blocks), np.nan)
    for at in range(blocks):
        block = sums[..., sums.shape[-1] - blocks + at]
        state = state.step(block, expected[..., at], reference.noise)
        course[:, at] = np.maximum(state.log_evidence, -5)
    ends = np.arange(-blocks, 0.0) / HOUR + 1 / HOUR
    panels["fast detector: log evidence for a drop"] = [
        *(Line(ends, course[i], title, colour) for i, (title, colour) in enumerate(_ROWS.items())),
        Line(ends, bar.fast_delta, "alarm (D)", BASE_COLOUR, "--"),
        Line(ends, bar.fast_level, "alarm (means)", BASE_COLOUR, ":"),
    ]
    return panels


def means_by_hour(sums: Floats, hours: int) -> Floats:
    """D, mean OOD and mean ID of the last hours of a series (6, 2, T), (3, hours); NaN where not known."""
    known, found = min(hours, sums.shape[-1] // HOUR), np.full((3, hours), np.nan)
    by_hour = _by_hour(sums, known)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = by_hour[X] / by_hour[W]
    found[:, hours - known :] = mean[OOD] - mean[ID], *mean
    return found


def week_before(sums: Floats) -> Floats:
    """The same hours a week ago.

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


def histograms(found: Evaluation, model: str) -> tuple[list[Histogram], str]:
    """Cosines, OOD scores and cells of 24 h against the baseline; and how far the inputs diverged."""
    end, known = found.traffic.end_block, found.state.models[model]
    now, base = {}, {}
    for name, bins in HISTOGRAMS.items():
        now[name] = found.traffic.histogram(model, name, end, BLOCKS_PER_DAY)
        base[name] = np.array(known.histograms.get(name, [0] * bins), dtype=np.float64)
    panels = [
        Histogram(f"cosine to the truth, {name.upper()}", colour, now[key], base[key], -1.0, 1.0)
        for name, colour in (("ood", OOD_COLOUR), ("id", ID_COLOUR))
        for key in [f"cosine.{name}"]
    ]
    if not now["score"].sum():
        return panels, "Nobody scored the inputs."
    recent = found.traffic.histogram(model, "score", end, BLOCKS_PER_DAY // 24)
    # A cell's number says nothing: the baseline's most frequent one comes first.
    order = np.argsort(-base["cells"], kind="stable")
    used = order[(now["cells"] + base["cells"])[order] > 0]
    title, size = "nearest centroid, by the baseline's share", float(len(used))
    panels += [
        Histogram("OOD score of the inputs", DELTA_COLOUR, now["score"], base["score"], 0.0, 1.0, recent),
        Histogram(title, DELTA_COLOUR, now["cells"][used], base["cells"][used], 0.0, size),
    ]
    if not (base["score"].sum() and base["cells"].sum() and now["cells"].sum()):
        return panels, "There is no baseline of the inputs to compare with yet."
    after, before = now["cells"] / now["cells"].sum(), base["cells"] / base["cells"].sum()
    most = [i for i in np.argsort(before - after, kind="stable")[:_NAMED].tolist() if after[i] > before[i]]
    named = ", ".join(f"{i} ({before[i]:.1%} to {after[i]:.1%})" for i in most)
    scores, cells = divergence(base["score"], now["score"]), divergence(base["cells"], now["cells"])
    return panels, (
        f"Divergence from the baseline over 24 h: OOD scores {scores:.3f}, cells {cells:.3f} bits. "
        f"Cells that grew most: {named or 'none'}."
    )
