"""What a calibration shows: quality against escalation for every score, and which rules fire."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.calibration.fit import chosen, resampled_means
from amn.calibration.windows import JUDGED, Slice
from amn.evaluation import plots
from amn.evaluation.metrics import Cosines, estimate
from amn.gate.escalation import REASONS, Scores, soft_rules
from amn.policy import MEAN_TOP_K, EscalationPolicy, load_policy, presets

RATES = (0.05, 0.10, 0.20, 0.50, 1.00)


def rankings(data: Slice, predicted: Cosines, gain: Cosines) -> dict[str, Cosines]:
    """Every score as "higher is escalated first"; `oracle` knows the truth, `random` nothing."""
    draw = np.random.default_rng(0)
    return {
        "oracle": gain,
        "predicted gain": predicted,
        "low confidence": -data.rows[:, 5],
        "thin margin": -data.rows[:, 6],
        "low mean_top_50": -data.mean_top,
        "low coherence": -data.rows[:, 3],
        "random": draw.random(len(data)),
    }


def curves(data: Slice, ranked: dict[str, Cosines], gain: Cosines) -> dict[str, Any]:
    """Mean gain of all final answers over AMN alone, by score and rate, with intervals by article."""
    made: dict[str, Any] = {}
    for name, score in ranked.items():
        made[name] = {}
        for rate in RATES:
            share = np.full(len(data), rate) if name == "random" else chosen(score, rate)
            over_random = estimate((share - rate) * gain, data.articles)
            made[name][f"{rate:g}"] = estimate(share * gain, data.articles).to_dict() | {
                "over_random": [round(x, 6) for x in (over_random.mean, over_random.low, over_random.high)]
            }
    return made


def whole(data: Slice, weight: NDArray[np.float64]) -> dict[str, Any]:
    """Gain over AMN alone if everything were escalated: blended, with a fifth everywhere, and `last`."""
    ways = {"blend": weight, "a fifth": np.full(len(data), 0.2), "last": np.ones(len(data))}
    return {name: estimate(data.final(w) - data.fast, data.articles).to_dict() for name, w in ways.items()}


def firing(data: Slice, predicted: Cosines) -> dict[str, dict[str, float]]:
    """Share of the windows on which each soft rule of each preset fires, and what is left of them.

    `flagged` is any soft rule; `worth` is flagged with a predicted gain above the policy's least.
    """
    made = {}
    for name in presets():
        policy = load_policy(name)
        counts = dict.fromkeys((*REASONS[2:], "flagged", "worth"), 0)
        for b, scores in enumerate(scores_of(policy, data, predicted)):
            reasons = soft_rules(policy, scores)
            for reason in reasons:
                counts[reason] += 1
            counts["flagged"] += bool(reasons)
            worth = policy.gain is None or predicted[b] > policy.gain.min
            counts["worth"] += bool(reasons) and bool(worth)
        made[name] = {key: round(value / len(data), 4) for key, value in counts.items()}
    return made


def scores_of(policy: EscalationPolicy, data: Slice, predicted: Cosines) -> list[Scores]:
    """What the policy's methods say of each window; the margin is the distinct one."""
    rule = policy.confidence
    confidence = data.mean_top if rule and rule.method == MEAN_TOP_K else data.rows[:, 5]
    rows = zip(confidence.tolist(), data.rows[:, 6].tolist(), predicted.tolist(), strict=True)
    return [Scores(*row) for row in rows]


def rate_bound(data: Slice, predicted: Cosines, rate: float) -> dict[str, float]:
    """The least threshold of the gain whose rate stays below `rate` with 95 % confidence, one-sided,
    over resampled articles; equal gains are escalated together, so it may take all or nothing."""
    levels = np.unique(predicted)
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if _upper(data, predicted > levels[middle]) <= rate:
            high = middle
        else:
            low = middle + 1
    above = predicted > levels[low]
    return {
        "threshold": float(levels[low]),
        "rate": round(float(above.mean()), 4),
        "rate_upper_95": round(_upper(data, above), 4),
    }


def _upper(data: Slice, above: NDArray[np.bool_]) -> float:
    return float(np.quantile(resampled_means(above.astype(np.float64), data.articles), 0.95))


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# Calibration {report['calibration_id']}", ""]
    lines += [f"Score: {report['score']}. Models: {report['amn']} and {report['fallback']}.", ""]
    lines += ["| novelty from | weight of the fallback |", "|---:|---:|"]
    lines += [
        f"| {e:.5f} | {w:.2f} |" for e, w in zip(report["weight_edges"], report["weights"], strict=True)
    ]
    if not any(report["weights"]):
        lines += ["", "No weight of this fallback certainly helps: no soft rule will escalate to it."]
    lines += ["", "## Gain over AMN alone if everything were escalated, in 1e-5", ""]
    lines += ["| slice | blend | a fifth everywhere | last |", "|---|---:|---:|---:|"]
    for side, ways in report["whole"].items():
        lines.append(f"| {side} | {' | '.join(_cell(ways[name]) for name in ('blend', 'a fifth', 'last'))} |")
    for side in JUDGED:
        lines += ["", f"## Gain over AMN alone, {side} (n = {report['n'][side]}), in 1e-5", ""]
        lines += [f"| score | {' | '.join(f'{r:.0%}' for r in RATES)} | over random at 20 % |"]
        lines += ["|---|" + "---:|" * (len(RATES) + 1)]
        for name, row in report["curves"][side].items():
            cells = [_cell(cell) for cell in row.values()]
            mean, low, high = (x * 1e5 for x in row["0.2"]["over_random"])
            lines.append(f"| {name} | {' | '.join(cells)} | {mean:+.1f} [{low:+.1f}, {high:+.1f}] |")
    return "\n".join([*lines, "", *_firing_text(report)])


def _cell(found: dict[str, float]) -> str:
    return f"{found['mean'] * 1e5:+.0f} [{found['low'] * 1e5:+.0f}, {found['high'] * 1e5:+.0f}]"


def _firing_text(report: dict[str, Any]) -> list[str]:
    columns = [*REASONS[2:], "flagged", "worth"]
    lines = ["## Share on which each soft rule fires", ""]
    lines += [f"| preset | slice | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    for name in presets():
        for side in JUDGED:
            row = report["firing"][side][name]
            lines.append(f"| {name} | {side} | {' | '.join(f'{row[c]:.1%}' for c in columns)} |")
    bound = report["rate_bound"]
    lines += [
        "",
        f"The least threshold that holds the rate: a gain above {bound['threshold']:.6f} takes "
        f"{bound['rate']:.1%} of the validation windows, and at most {bound['rate_upper_95']:.1%} with 95 % "
        "confidence, one-sided. Equal gains are taken together or not at all; then the budget chooses.",
        "",
    ]
    return lines


def plot(report: dict[str, Any], side: str) -> str:
    """Gain over AMN alone against the share escalated, one line a score, as SVG."""
    drawn, axes = plots.figure(f"Gain over AMN alone, {side}")
    shown = [name for name in report["curves"][side] if name != "oracle"]
    for colour, name in zip(plots.COLOURS * 2, shown, strict=False):
        row = report["curves"][side][name]
        means = [0.0, *(cell["mean"] for cell in row.values())]
        axes.plot(
            [0.0, *RATES], means, label=name, color=colour, lw=1.4, ls="--" if name == "random" else "-"
        )
    axes.set_xlabel("share escalated", fontsize=9)
    axes.set_ylabel("mean cosine gained", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    return plots.svg(drawn)
