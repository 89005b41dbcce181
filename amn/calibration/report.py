"""The report of a calibration: quality against the share escalated, for the fitted score and others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.calibration.fit import chosen
from amn.calibration.windows import JUDGED, Slice
from amn.evaluation import plots
from amn.evaluation.metrics import Cosines, estimate
from amn.evaluation.report import markdown

RATES = (0.05, 0.10, 0.20, 0.50, 1.00)


def curves(data: Slice, predicted: Cosines, gain: Cosines) -> dict[str, Any]:
    """Mean gain of all final answers over AMN alone, by score and rate, with intervals by article.

    Every score escalates its highest first; `oracle` knows the truth, and `random` nothing.
    """
    scores = {
        "oracle": gain,
        "predicted gain": predicted,
        "low confidence": -data.rows[:, 5],
        "thin margin": -data.rows[:, 6],
        "random": None,
    }
    made: dict[str, Any] = {}
    for name, score in scores.items():
        made[name] = {}
        for rate in RATES:
            share = np.full(len(data), rate) if score is None else chosen(score, rate)
            over_random = estimate((share - rate) * gain, data.articles)
            made[name][f"{rate:g}"] = estimate(share * gain, data.articles).to_dict() | {
                "over_random": [round(x, 6) for x in (over_random.mean, over_random.low, over_random.high)]
            }
    return made


def whole(data: Slice, weight: NDArray[np.float64]) -> dict[str, Any]:
    """Gain over AMN alone if everything were escalated: blended, with a fifth everywhere, and `last`."""
    ways = {"blend": weight, "a fifth": np.full(len(data), 0.2), "last": np.ones(len(data))}
    return {name: estimate(data.final(w) - data.fast, data.articles).to_dict() for name, w in ways.items()}


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    weights = zip(report["weight_edges"], report["weights"], strict=True)
    parts = [
        f"# Calibration {report['calibration_id']}",
        f"Score: {report['score']}. Models: {report['amn']} and {report['fallback']}.",
        markdown(["novelty from", "weight of the fallback"], [(f"{e:.5f}", f"{w:.2f}") for e, w in weights]),
    ]
    if not any(report["weights"]):
        parts.append("No weight of this fallback certainly helps: no soft rule will escalate to it.")
    parts.append("## Gain over AMN alone if everything were escalated, in 1e-5")
    ways = ("blend", "a fifth", "last")
    rows = [[side, *(_cell(found[way]) for way in ways)] for side, found in report["whole"].items()]
    parts.append(markdown(["slice", "blend", "a fifth everywhere", "last"], rows))
    for side in JUDGED:
        parts.append(f"## Gain over AMN alone, {side} (n = {report['n'][side]}), in 1e-5")
        head = ["score", *(f"{rate:.0%}" for rate in RATES), "over random at 20 %"]
        parts.append(markdown(head, [_curve(*item) for item in report["curves"][side].items()]))
    bound = report["rate_bound"]
    parts.append(
        f"The least threshold that holds the rate: a gain above {bound['threshold']:.6f} takes "
        f"{bound['rate']:.1%} of the validation windows, and at most {bound['rate_upper_95']:.1%} with 95 % "
        "confidence, one-sided. Equal gains are taken together or not at all; then the budget chooses.\n"
        "Which rules of a policy fire: `amn policy replay decisions.jsonl --policy NAME`."
    )
    return "\n\n".join(parts) + "\n"


def _curve(name: str, cells: dict[str, Any]) -> list[str]:
    mean, low, high = (x * 1e5 for x in cells["0.2"]["over_random"])
    return [name, *map(_cell, cells.values()), f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"]


def _cell(found: dict[str, float]) -> str:
    return f"{found['mean'] * 1e5:+.0f} [{found['low'] * 1e5:+.0f}, {found['high'] * 1e5:+.0f}]"


def plot(report: dict[str, Any], side: str) -> str:
    """Gain over AMN alone against the share escalated, one line a score, as SVG."""
    drawn, axes = plots.figure(f"Gain over AMN alone, {side}")
    for name, row in report["curves"][side].items():
        if name != "oracle":
            means = [0.0, *(cell["mean"] for cell in row.values())]
            axes.plot([0.0, *RATES], means, label=name, lw=1.4, ls="--" if name == "random" else "-")
    axes.set_xlabel("share escalated", fontsize=9)
    axes.set_ylabel("mean cosine gained", fontsize=9)
    return plots.svg(drawn)
