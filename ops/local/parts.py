"""The parts of a service: `amn up` starts them, and the samples of deployments are compared with them.

The samples are docker-compose.yml, ops/deploy/systemd and ops/deploy/kubernetes; a server belongs to each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of process.

    Attributes:
        name: Its name in the samples; of a worker, its kind.
        words: Words after `amn` that start it.
        title: Name for people of what runs beside the workers; "" for a worker.
        wants: What it cannot do without, where that is not always there: `alerts` says where they are
            sent, `jobs` a server that RQ can use, `metrics` and `page` a port.
    """

    name: str
    words: tuple[str, ...]
    title: str = ""
    wants: str = ""


PARTS = (
    Part(name="amn", words=("worker", "amn")),
    Part(name="fallback", words=("worker", "fallback")),
    Part(name="shadow", words=("worker", "shadow")),
    Part(name="jobs", words=("jobs", "worker"), title="the jobs worker", wants="jobs"),
    Part(name="judge", words=("drift", "judge"), title="the judge"),
    Part(name="sender", words=("alerts", "run"), title="the sender of alerts", wants="alerts"),
    Part(name="metrics", words=("metrics",), title="the metrics", wants="metrics"),
    Part(name="dashboard", words=("dashboard",), title="the page", wants="page"),
)
WORKERS = tuple(part for part in PARTS if not part.title)
BESIDE = tuple(part for part in PARTS if part.title)
