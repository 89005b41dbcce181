"""The goals beside the measurements of a run: one row a goal, from the reports of its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.curves import OBJECTIVE_MS, fast_until
from bench.report import table
from bench.systems import BARE

Reports = Mapping[str, Any]
Figure = Callable[[Reports], float]


def _at(path: str) -> Figure:
    """Return the figure under these keys; a number is a place in a list."""

    def found(reports: Any) -> float:
        for key in path.split("/"):
            reports = reports[int(key) if isinstance(reports, list) else key]
        return float(reports)

    return found


def _row(report: str, rows: str, figure: str, **wanted: object) -> Figure:
    """Return the median of the row that has these values."""

    def found(reports: Reports) -> float:
        some: Iterable[Mapping[str, Any]] = reports[report][rows]
        return float(next(r for r in some if wanted.items() <= r.items())[figure]["median"])

    return found


def _growth(kind: str, figure: str, first: int = 0) -> Figure:
    """Return the last row over an early one."""
    return lambda r: float(r["cost"][kind][-1][figure] / r["cost"][kind][first][figure])


def _held_share(reports: Reports) -> float:
    large = reports["latency-bank"]
    return float(fast_until(large["rates"]) / large["saturation_per_s"])


def _share_of_drain(reports: Reports) -> float:
    """Return our drain over a bare one and model and gate, one after the other."""
    each_us = 1e6 / _at("drain/bare/drain_per_s/median")(reports) + reports["drain"]["alone_us"]
    return float(_at("drain/workers/1/drain_per_s/median")(reports) * each_us / 1e6)


def _share_of_enqueue(reports: Reports) -> float:
    ours, bare = "drain/workers/1/enqueue_per_s/median", "drain/bare/enqueue_per_s/median"
    return _at(ours)(reports) / _at(bare)(reports)


def _at_1000(report: Mapping[str, Any]) -> float:
    return float(next(row for row in report["rates"] if row["rate"] == 1000)["ms_p95"]["median"])


def _over_loop(reports: Reports) -> float:
    ours, bare = reports["latency-alone"], reports["peer-latency"]["systems"][BARE]
    return _at_1000(ours) / _at_1000(bare)


#: The row of 1,000 waiting: with fewer, batches are not full, and a request costs more than with many.
_FULL = 3
_ENGINE = "micro/us_per_context/model, folded (what workers run)"
_CPU, _MB = "worker CPU a request", "worker memory"
_LAST_SERVED = "the last decade served over the first 1,000"
#: What is measured, by which command of `python -m bench`, the limit, its unit, and the figure. A limit
#: with a minus is the most that is good, the others are the least.
GOALS: tuple[tuple[str, str, float, str, Figure], ...] = (
    ("drained a second, over a bare drain, then model and gate", "drain", 0.7, "x", _share_of_drain),
    ("enqueued a second, over a bare XADD of the same bytes", "drain", 0.65, "x", _share_of_enqueue),
    ("p95 at 500/s, shipped bank", "latency", -1.2, "ms", _row("latency", "rates", "ms_p95", rate=500)),
    ("p95 at 1,000/s, shipped bank", "latency", -1.5, "ms", _row("latency", "rates", "ms_p95", rate=1000)),
    ("p95 at 1,000/s, over a bare loop", "peer-latency", -1.5, "x", _over_loop),
    (
        *("p95 at 1,000/s, large bank", "latency --bank", -OBJECTIVE_MS, "ms"),
        _row("latency-bank", "rates", "ms_p95", rate=1000),
    ),
    (
        *("p99 at 1,000/s, large bank", "latency --bank", -2.5, "ms"),
        _row("latency-bank", "rates", "ms_p99", rate=1000),
    ),
    ("share of saturation up to which p95 holds, large bank", "latency --bank", 0.6, "", _held_share),
    (
        *("share of model and gate in a worker's CPU", "shares", 0.6, ""),
        lambda r: float(r["shares"]["shares"]["model"] + r["shares"]["shares"]["gate"]),
    ),
    ("model, one context", "micro", -60, "us", _at(f"{_ENGINE}/1")),
    ("model, a context in a batch of 64", "micro", -12, "us", _at(f"{_ENGINE}/64")),
    (
        "most that what serves differs from the network as written",
        "micro",
        -1e-5,
        "",
        _at("micro/serving/difference_max"),
    ),
    ("least cosine of both", "micro", 0.999, "", _at("micro/serving/cosine_min")),
    ("gate decisions that differ", "micro", -0.001, "", _at("micro/serving/decisions_changed")),
    (
        *("contexts a second in batches, no gate", "batch", 30_000, ""),
        _row("batch", "runs", "contexts_per_s", policy="none"),
    ),
    (
        *("batches with gate, over model and gate alone", "batch", 0.8, "x"),
        _row("batch", "runs", "share_of_alone", policy="calibrated"),
    ),
    (f"{_CPU}, {_LAST_SERVED}", "cost", -1.1, "x", _growth("served", "worker_cpu_us")),
    (f"{_CPU}, most waiting over one waiting", "cost", -1.1, "x", _growth("waiting", "worker_cpu_us")),
    (
        f"{_CPU}, most waiting over 1,000 waiting",
        "cost",
        -1.1,
        "x",
        _growth("waiting", "worker_cpu_us", _FULL),
    ),
    (f"{_MB}, {_LAST_SERVED}", "cost", -1.05, "x", _growth("served", "worker_mb")),
    ("start of a worker to ready", "cost", -3, "s", _at("cost/start_s")),
)


def goals_table(reports: Reports) -> str:
    """Return the table; a goal whose step did not run says so."""
    rows = []
    for text, step, limit, unit, figure in GOALS:
        measured, held = "not run", ""
        with contextlib.suppress(LookupError, StopIteration, TypeError, ZeroDivisionError):
            value = figure(reports)
            digits = f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
            measured = f"{digits} {unit}".strip()
            held = "yes" if (value <= -limit if limit < 0 else value >= limit) else "**no**"
        bound = f"at {'most' if limit < 0 else 'least'} {abs(limit):,g} {unit}".strip()
        rows.append(
            {
                "goal": text,
                "limit": bound,
                "measured": measured,
                "held": held,
                "command of bench": f"`{step}`",
            }
        )
    return table(rows)
