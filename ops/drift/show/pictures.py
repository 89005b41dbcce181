"""The panels of the report: means, evidence and shares over 48 h, histograms over 24 h."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures import hourly
from ops.drift.measures.blocks import ALL, HISTOGRAMS
from ops.drift.measures.statistics import divergence
from ops.drift.rules.drops import bars
from ops.drift.service.objectives import OBJECTIVES
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

#: Cells that are named below their picture.
_NAMED = 5
_WATCHED = (("D", DELTA_COLOUR), ("m_OOD", OOD_COLOUR), ("m_ID", ID_COLOUR))


def courses(found: Evaluation, model: str, settings: JudgeSettings) -> dict[str, list[Line]]:
    """The means and D by hour beside baseline, last week and D's limit; the fast detector's evidence."""
    traffic, known = found.traffic, found.state.models[model]
    sums, reference = traffic.series[model][ALL], known.baselines.get(ALL)
    hours, before = hourly.hours_of(sums, traffic.first_block, reference), hourly.week_before(sums)
    panels = {}
    titles = {"mean cosine, OOD": OOD_COLOUR, "mean cosine, ID": ID_COLOUR, "D = OOD - ID": DELTA_COLOUR}
    for row, (title, colour) in enumerate(titles.items()):
        panels[title] = [
            Line(hours.ago, hours.mean[row], "by hour, 2 standard errors", colour, error=hours.error[row]),
            Line(hours.ago, hours.expected[row], "baseline", BASE_COLOUR, "--"),
        ]
        if np.isfinite(before[row]).any():
            panels[title].append(Line(hours.ago, before[row], "a week ago", INK, "-."))
    limit, drop = hours.expected[2] - settings.drop_page, f"baseline - {settings.drop_page:g}"
    panels["D = OOD - ID"].append(Line(hours.ago, limit, drop, BASE_COLOUR, ":"))
    if reference is not None:
        lanes = sum(name == model for name, _ in found.comparisons)
        bar = bars(settings.pages_per_year, lanes or 1, len(known.detectors) or 1)
        ago, course = hourly.evidence_course(sums, traffic.first_block, reference)
        panels["fast detector: log evidence for a drop"] = [
            *(Line(ago, np.maximum(course[row], -5), *watched) for row, watched in enumerate(_WATCHED)),
            Line(ago, bar.fast_delta, "alarm (D)", BASE_COLOUR, "--"),
            Line(ago, bar.fast_level, "alarm (means)", BASE_COLOUR, ":"),
        ]
    return panels


def shares(
    found: Evaluation, model: str, counts: Mapping[int, Mapping[str, int]], settings: JudgeSettings
) -> dict[str, list[Line]]:
    """Shares of the samples and of the service by hour, in percent, with the limits that rules set them.

    Args:
        counts: The counters at the ends of past blocks.
    """
    end, sums = found.now_ms // 60_000 // BLOCK_MIN, found.traffic.series[model][ALL]
    sampled = hourly.counter_shares(counts, end, ("shadowed",), ("answered",))
    shown = [
        ("OOD share of the samples", hourly.share_of(found.traffic, model), None),
        ("truths that came", hourly.coverage_of(sums), settings.coverage_min),
        ("sampled", sampled, settings.sample_min),
    ]
    for one in OBJECTIVES:
        share = hourly.counter_shares(counts, end, one.bad, one.of)
        shown.append((one.what, share, one.budget(settings)))
    panels = {}
    for title, values, limit in shown:
        ago = np.arange(-len(values), 0.0) + 0.5
        panels[title] = [Line(ago, 100 * values, "%", ID_COLOUR)]
        if limit is not None:
            panels[title].append(Line(ago, 100 * limit, "limit", BASE_COLOUR, "--"))
    return panels


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
