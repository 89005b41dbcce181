"""The report's histograms: cosines, OOD scores and cells of 24 h against the baseline."""

from __future__ import annotations

import numpy as np

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.statistics import Floats, divergence
from ops.drift.rules.learning import HISTOGRAMS
from ops.drift.show import plots
from ops.drift.show.plots import Panel
from ops.drift.state import Evaluation, ModelState

#: Cells that are named below their picture.
_NAMED = 5


def cosines(found: Evaluation, known: ModelState, model: str) -> str:
    """AMN's cosines to the truth, by slice."""
    panels = []
    for name, colour in (("ood", plots.OOD_COLOUR), ("id", plots.ID_COLOUR)):
        now, base = _counts(found, known, model, f"cosine.{name}")
        panels.append(Panel(f"cosine to the truth, {name.upper()}", now, base, colour, -1.0, 1.0))
    return plots.histograms_plot(panels, "cosines")


def inputs(found: Evaluation, known: ModelState, model: str) -> list[str]:
    """Shows the inputs' OOD scores and nearest centroids; nothing where nobody scores."""
    score, score_base = _counts(found, known, model, "score")
    cells, cells_base = _counts(found, known, model, "cells")
    if not score.sum():
        return []
    # A cell's number says nothing: the baseline's most frequent one comes first.
    order = np.argsort(-cells_base, kind="stable")
    used = order[(cells + cells_base)[order] > 0]
    end, bins = found.traffic.end_block, HISTOGRAMS["score"]
    recent = found.traffic.histogram(model, "score", end, BLOCKS_PER_DAY // 24, bins)
    panels = [
        Panel("OOD score of the inputs", score, score_base, plots.DELTA_COLOUR, 0.0, 1.0, recent),
        Panel(
            "nearest centroid, by the baseline's share",
            cells[used],
            cells_base[used],
            plots.DELTA_COLOUR,
            0.0,
            float(len(used)),
        ),
    ]
    drawn = f'<div class="wide">{plots.histograms_plot(panels, "inputs")}</div>'
    return ["<h2>What is asked</h2>", drawn, _grown(score, score_base, cells, cells_base)]


def _grown(score: Floats, score_base: Floats, cells: Floats, cells_base: Floats) -> str:
    """Says how far both diverged, and names the cells that grew most."""
    if not (score_base.sum() and cells_base.sum() and cells.sum()):
        return '<p class="soft">There is no baseline to compare with yet.</p>'
    now, base = cells / cells.sum(), cells_base / cells_base.sum()
    most = np.argsort(base - now, kind="stable")[:_NAMED]
    named = ", ".join(f"{i} ({base[i]:.1%} to {now[i]:.1%})" for i in most.tolist() if now[i] > base[i])
    scores, places = divergence(score_base, score), divergence(cells_base, cells)
    return (
        f'<p class="soft">Divergence from the baseline over 24 h: OOD scores {scores:.3f}, cells '
        f"{places:.3f} bits. Cells that grew most: {named or 'none'}.</p>"
    )


def _counts(found: Evaluation, known: ModelState, model: str, name: str) -> tuple[Floats, Floats]:
    """Returns the counts of the last 24 h, and of the baseline."""
    bins = HISTOGRAMS[name]
    now = found.traffic.histogram(model, name, found.traffic.end_block, BLOCKS_PER_DAY, bins)
    return now, np.array(known.histograms.get(name, [0] * bins), dtype=np.float64)
