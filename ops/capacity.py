"""The plant that a rate of requests needs: arithmetic on constants that a benchmark measured.

All constants are of one machine (docs/benchmarks.md), and everything is taken to grow in proportion: no
figure here was measured on more than two cores. A report of your own machine makes it yours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.errors import FileRefused

#: Each constant: what it is, where it is in the report, and the command that measures it.
SOURCES: Mapping[str, tuple[str, str, str]] = {
    "amn_per_s": (
        "requests a second of one AMN worker on a core of its own, TCP",
        "compare/systems/amn_queue/drain_per_s/median",
        "compare",
    ),
    "producer_per_s": (
        "requests a second that one producer's process submits, TCP, 64 a call",
        "compare/systems/amn_queue/enqueue_per_s/median",
        "compare",
    ),
    "fallback_us": (
        "CPU of a fallback worker an escalation",
        "capacity/kinds/fallback/cpu_us/median",
        "capacity",
    ),
    "shadow_us": ("CPU of a shadow worker a sample", "capacity/kinds/shadow/cpu_us/median", "capacity"),
    "server_us": ("CPU of the server a request, after millions", "cost/served/-1/server_cpu_us", "cost"),
    "server_mb": ("memory of a server without a backlog, after millions", "cost/served/-1/server_mb", "cost"),
    "waiting_mb": ("memory of the server with most requests waiting", "cost/waiting/-1/server_mb", "cost"),
    "waiting": ("how many these are", "cost/waiting/-1/waiting", "cost"),
    "amn_mb": ("memory of an AMN worker", "cost/served/-1/worker_mb", "cost"),
    "fallback_mb": ("memory of a fallback worker", "capacity/kinds/fallback/mb/median", "capacity"),
    "shadow_mb": ("memory of a shadow worker", "capacity/kinds/shadow/mb/median", "capacity"),
    "request_bytes": ("bytes of a request", "capacity/bytes/request", "capacity"),
    "answer_bytes": ("bytes of an answer", "capacity/bytes/answer", "capacity"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The demand that a plant has to meet.

    Attributes:
        rate_per_s: Requests of one context a second.
        escalated, sampled: Shares that go to a fallback, and to the shadow worker.
        busy: Share of a core that is used on average; the rest is for bursts, and for waiting little.
        outage_s: For how long requests may wait while no worker is there; the server's memory holds them.
    """

    rate_per_s: float
    escalated: float = 0.2
    sampled: float = 0.05
    busy: float = 0.7
    outage_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """The plant for a demand. A worker, a producer's process and a partition's server take a core each.

    Attributes:
        partitions: Servers, each with a queue of its own behind one producer; 1 is no partitions.
        server_gb: Memory of all servers; a rewrite of the append-only file may take as much again.
        worker_gb: Memory of all workers.
        in_gbit_s, out_gbit_s: Into and out of all servers, TCP's own share left out.
        file_mb_s: Appended to the servers' files.
    """

    amn: int
    fallback: int
    shadow: int
    producers: int
    partitions: int
    cores: int
    server_gb: float
    worker_gb: float
    in_gbit_s: float
    out_gbit_s: float
    file_mb_s: float


def constants(report: Path) -> dict[str, float]:
    """The constants of a report, by name.

    Raises:
        FileRefused: It cannot be read, or one is missing.
    """
    try:
        found = json.loads(report.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileRefused(f"the report {report} cannot be read: {error}; give --report") from error
    read = {}
    for name, (what, path, command) in SOURCES.items():
        try:
            read[name] = float(_at(found, path))
        except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            text = f"{report} does not say {what} ({path}); measure it: python -m bench {command}"
            raise FileRefused(text) from error
    return read


def _at(report: Any, path: str) -> Any:
    for step in path.split("/"):
        if not isinstance(report, list):
            report = report[step]
        elif step.lstrip("-").isdigit():
            report = report[int(step)]
        else:
            report = next(row for row in report if row["system"] == step)
    return report


def plant(demand: Demand, known: Mapping[str, float]) -> Plant:
    """Returns the plant for a demand: whole workers and servers, one of each at least."""

    def whole(cores: float) -> int:
        return max(math.ceil(cores / demand.busy), 1)

    rate = demand.rate_per_s
    escalated, sampled = rate * demand.escalated, rate * demand.sampled
    amn = whole(rate / known["amn_per_s"])
    fallback = whole(escalated * known["fallback_us"] / 1e6)
    shadow = whole(sampled * known["shadow_us"] / 1e6)
    producers = whole(rate / known["producer_per_s"])
    partitions = whole(rate * known["server_us"] / 1e6)
    waiting_bytes = (known["waiting_mb"] - known["server_mb"]) / known["waiting"] * 1e6
    both = known["request_bytes"] + known["answer_bytes"]
    return Plant(
        amn=amn,
        fallback=fallback,
        shadow=shadow,
        producers=producers,
        partitions=partitions,
        cores=amn + fallback + shadow + producers + partitions,
        server_gb=(partitions * known["server_mb"] * 1e6 + rate * demand.outage_s * waiting_bytes) / 1e9,
        worker_gb=sum(
            count * known[f"{kind}_mb"] / 1e3
            for kind, count in (("amn", amn), ("fallback", fallback), ("shadow", shadow))
        ),
        # A request comes and its answer; of an escalated one, AMN's answer comes with it as well.
        in_gbit_s=(rate * both + escalated * known["answer_bytes"]) * 8 / 1e9,
        # To a worker and to the client; fallback and shadow worker read both again.
        out_gbit_s=(rate * both + (escalated + sampled) * both) * 8 / 1e9,
        # What came is appended; an escalation and a sample are copies that the server makes.
        file_mb_s=(rate * both + (escalated + sampled) * both) / 1e6,
    )
