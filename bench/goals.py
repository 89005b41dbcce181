"""What was to be reached, beside what a run measured: one row a goal, from the reports of its folder."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.curves import OBJECTIVE_MS, fast_until
from bench.report import markdown

Reports = Mapping[str, Any]
_ABOVE, _BELOW = ("at least", operator.ge), ("at most", operator.le)


@dataclass(frozen=True, slots=True)
class Goal:
    """One of them.

    Attributes:
        text: What is measured.    step: By which command of `python -m bench`.
        limit, unit: What it is to be.    side: Which side of the limit is good.
        measured: Reads it from the reports.
    """

    text: str
    step: str
    limit: float
    unit: str
    side: tuple[str, Callable[[Any, Any], bool]]
    measured: Callable[[Reports], float]


def goals_table(reports: Reports) -> str:
    """Markdown; a goal whose step did not run says so."""
    rows = []
    for goal in GOALS:
        measured, held = "not run", ""
        with contextlib.suppress(KeyError, StopIteration, IndexError):
            value = goal.measured(reports)
            measured = f"{_digits(value)} {goal.unit}".strip()
            held = "yes" if goal.side[1](value, goal.limit) else "**no**"
        rows.append((goal.text, _limit(goal), measured, held, f"`{goal.step}`"))
    return "\n".join(markdown(("goal", "limit", "measured", "held", "command of bench"), rows))


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _limit(goal: Goal) -> str:
    return f"{goal.side[0]} {goal.limit:,g} {goal.unit}".strip()


def _ratio(report: str, figure: str) -> Callable[[Reports], float]:
    return lambda r: r[report]["ratios"]["1"][figure]["of_medians"]  # type: ignore[no-any-return]


def _at_1000(percentile: str) -> Callable[[Reports], float]:
    return lambda r: next(row for row in _large(r)["rates"] if row["rate"] == 1000)[percentile]["median"]  # type: ignore[no-any-return]


def _large(reports: Reports) -> Any:
    return reports["latency-bank"]


def _held_share(reports: Reports) -> float:
    return float(fast_until(_large(reports)["rates"]) / _large(reports)["saturation_per_s"])


def _engine(size: str) -> Callable[[Reports], float]:
    return lambda r: r["micro"]["us_per_context"]["model, folded (what workers run)"][size]  # type: ignore[no-any-return]


def _difference(reports: Reports) -> float:
    return float(reports["micro"]["difference_max"])


def _share_of_both(reports: Reports) -> float:
    shares = reports["shares"]["shares"]
    return float(shares["model"] + shares["gate"])


def _half(figure: str, worst: Callable[..., float]) -> Callable[[Reports], float]:
    return lambda r: worst(row[figure] for row in r["micro"]["half"].values())


def _batch(policy: str, figure: str) -> Callable[[Reports], float]:
    return lambda r: next(run for run in r["batch"]["runs"] if run["policy"] == policy)[figure]["median"]  # type: ignore[no-any-return]


def _growth(kind: str, figure: str, first: int = 0) -> Callable[[Reports], float]:
    """The last row over an early one."""
    return lambda r: r["cost"][kind][-1][figure] / r["cost"][kind][first][figure]  # type: ignore[no-any-return]


#: The row of 1,000 waiting: with fewer, batches are not full, and a request costs more than with many.
_FULL = 3

GOALS = (
    Goal(
        "drained a second with one worker, over the best other",
        "compare",
        15,
        "x",
        _ABOVE,
        _ratio("compare", "drain_per_s"),
    ),
    Goal(
        "the same, the three fastest others without the fast forms of this project",
        "compare --written",
        15,
        "x",
        _ABOVE,
        _ratio("compare-written", "drain_per_s"),
    ),
    Goal(
        "enqueued a second, over the best other",
        "compare",
        5,
        "x",
        _ABOVE,
        _ratio("compare", "enqueue_per_s"),
    ),
    Goal("p95 at 1,000/s, large bank", "latency --bank", OBJECTIVE_MS, "ms", _BELOW, _at_1000("ms_p95")),
    Goal("p99 at 1,000/s, large bank", "latency --bank", 2.5, "ms", _BELOW, _at_1000("ms_p99")),
    Goal(
        "share of saturation up to which p95 holds, large bank",
        "latency --bank",
        0.6,
        "",
        _ABOVE,
        _held_share,
    ),
    Goal("share of model and gate in a worker's CPU", "shares", 0.6, "", _ABOVE, _share_of_both),
    Goal("model, one context", "micro", 60, "us", _BELOW, _engine("1")),
    Goal("model, a context in a batch of 64", "micro", 12, "us", _BELOW, _engine("64")),
    Goal("most that it differs from the network as written", "micro", 1e-5, "", _BELOW, _difference),
    Goal(
        "least cosine of a 16-bit network with float32", "micro", 0.999, "", _ABOVE, _half("cosine_min", min)
    ),
    Goal(
        "gate decisions that 16 bits change",
        "micro",
        0.001,
        "",
        _BELOW,
        _half("decisions_changed", max),
    ),
    Goal(
        "contexts a second in batches, no gate", "batch", 30_000, "", _ABOVE, _batch("none", "contexts_per_s")
    ),
    Goal(
        "batches with gate, over model and gate alone",
        "batch",
        0.8,
        "x",
        _ABOVE,
        _batch("calibrated", "share_of_alone"),
    ),
    Goal(
        "worker CPU a request, the last decade served over the first 1,000",
        "cost",
        1.1,
        "x",
        _BELOW,
        _growth("served", "worker_cpu_us"),
    ),
    Goal(
        "worker CPU a request, most waiting over one waiting",
        "cost",
        1.1,
        "x",
        _BELOW,
        _growth("waiting", "worker_cpu_us"),
    ),
    Goal(
        "worker CPU a request, most waiting over 1,000 waiting",
        "cost",
        1.1,
        "x",
        _BELOW,
        _growth("waiting", "worker_cpu_us", _FULL),
    ),
    Goal(
        "worker memory, the last decade served over the first 1,000",
        "cost",
        1.05,
        "x",
        _BELOW,
        _growth("served", "worker_mb"),
    ),
    Goal("start of a worker to ready", "cost", 3, "s", _BELOW, lambda r: r["cost"]["start_s"]),
)
