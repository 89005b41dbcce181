"""The report of a calibration: quality against the share escalated, for the fitted score and others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.calibration.windows import JUDGED, Slice
from amn.evaluation import plots
from amn.evaluation.metrics import Cosines, estimate
from amn.evaluation.report import markdown

RATES = (0.05, 0.10, 0.20, 0.50, 1.00)


def curves(data: Slice, predicted: Cosines, gain: Cosines) -> dict[str, Any]:
    """Mean gain of all final answers over AMN alone, by score and rate, with intervals by article.

    Every score escalates its highest first; `oracle` knows the truth, and `random` nothing.
    """
    scores = {"oracle": gain, "predicted gain": predicted}
    scores |= {"low confidence": -data.rows[:, 5], "thin margin": -data.rows[:, 6]}
    found: dict[str, Any] = {name: {} for name in (*scores, "random")}
    for rate in RATES:
        shares = {name: escalated_share(score, rate) for name, score in scores.items()}
        for name, share in (shares | {"random": np.full(len(data), rate)}).items():
            extra = estimate((share - rate) * gain, data.articles)
            over_random = [round(x, 6) for x in (extra.mean, extra.low, extra.high)]
            cell = estimate(share * gain, data.articles).to_dict() | {"over_random": over_random}
            found[name][f"{rate:g}"] = cell
    return found


def escalated_share(score: Cosines, rate: float) -> NDArray[np.float64]:
    """Returns the escalated share of each window, 0 to 1, when the best `rate` of all are.

    Equal scores share the rest of the budget, as first come, first served does in the long run.
    """
    _, member, counts = np.unique(-score, return_inverse=True, return_counts=True)
    before = np.concatenate(([0], np.cumsum(counts)[:-1]))
    share = np.clip((rate * len(score) - before) / counts, 0.0, 1.0)
    return np.asarray(share[member])


def whole(data: Slice, weight: NDArray[np.float64]) -> dict[str, Any]:
    """Gain over AMN alone if everything were escalated: blended, with a fifth everywhere, and `last`."""
    gains = {"blend": data.gain(weight), "a fifth everywhere": data.gain(0.2), "last": data.gain(1.0)}
    return {name: estimate(gain, data.articles).to_dict() for name, gain in gains.items()}


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
    rows = [[side, *map(_cell, found.values())] for side, found in report["whole"].items()]
    parts.append(markdown(["slice", *report["whole"]["test"]], rows))
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
    means = {
        name: {0.0: 0.0} | {rate: cells[f"{rate:g}"]["mean"] for rate in RATES}
        for name, cells in report["curves"][side].items()
        if name != "oracle"
    }
    labels = {"xlabel": "share escalated", "ylabel": "mean cosine gained"}
    return plots.plot(f"Gain over AMN alone, {side}", means, **labels)
