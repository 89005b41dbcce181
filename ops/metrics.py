"""The queue, the drift judgement and the alerts as Prometheus metrics, read anew at each scrape.

Names are stable and carry their unit; labels take few values: no id of a request, worker or alert is
among them. docs/alerts.md lists them all.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ops import stages
from ops.alerts import books
from ops.alerts.store import alerts
from ops.alerts.watch import GIVEN_UP_FOR_MS, counted
from ops.drift.memory import Memory
from ops.drift.service.live import KINDS, LOST, Service, read_service
from ops.findings import Finding
from ops.health import backlog, beside, letters, streams
from ops.health.counters import COUNTS
from ops.health.process_checks import missing
from ops.settings import jobs_possible
from ops.web.access import bears
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.stages import BOUNDS_US, StageHistogram
from producer.transport.connection import connect, driver_errors

LabelValues = tuple[str, ...]
#: Limit for one family: a hash that somebody filled with names must not fill Prometheus.
LABELS_MAX = 100
#: Processes that leave a note when they end with an error (workers/pool/failures.py).
_NOTED = (*KINDS, "judge", "sender", "jobs worker")
#: Values of the judge's findings: metric, help, rule, name of the value, fixed labels.
VALUES = (
    ("amn_drift_mean_cosine", "Mean cosine to the truth, 24 h.", "ood_delta", "mean_ood", ("ood",)),
    ("amn_drift_mean_cosine", "Mean cosine to the truth, 24 h.", "ood_delta", "mean_id", ("id",)),
    ("amn_drift_samples", "Effective samples with a truth, 24 h.", "ood_delta", "n_ood", ("ood",)),
    ("amn_drift_samples", "Effective samples with a truth, 24 h.", "ood_delta", "n_id", ("id",)),
    ("amn_drift_delta_cosine", "Mean OOD minus mean ID, 24 h.", "ood_delta", "delta", ()),
    ("amn_drift_delta_expected_cosine", "The same by the reference.", "ood_delta", "delta_expected", ()),
    ("amn_drift_delta_drop_cosine", "Reference minus now.", "ood_delta", "drop", ()),
    ("amn_drift_delta_drop_error_cosine", "Its standard error.", "ood_delta", "drop_error", ()),
    ("amn_drift_delta_drop_recent_cosine", "The drop of the last hours.", "ood_delta", "drop_recent", ()),
    ("amn_drift_coverage_ratio", "Sampled requests whose truth came.", "ood_delta", "coverage", ()),
    ("amn_drift_evidence_log", "Evidence of the fast detector.", "fast_drop", "evidence_log", ()),
    ("amn_drift_evidence_needed_log", "What it needs.", "fast_drop", "evidence_needed_log", ()),
    ("amn_canary_change_cosine", "Largest change of a frozen item.", "canary", "max_change", ()),
    ("amn_input_ood_ratio", "Share of OOD samples, 24 h.", "input_drift", "ood_share", ()),
    ("amn_input_ood_baseline_ratio", "The same by the baseline.", "input_drift", "ood_share_baseline", ()),
    ("amn_input_divergence_bits", "Histogram against the baseline.", "input_drift", "divergence_bits", ()),
    ("amn_input_recent_divergence_bits", "Last minutes.", "input_drift", "recent_divergence_bits", ()),
)


class QueueCollector(Collector):
    """Reads one queue; a server that is away is a metric too."""

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings, self._keys = settings, Keys(settings.queue)
        self._client = connect(settings)
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """All metrics, or `amn_server_up 0` alone."""
        up, found = True, []
        try:
            with self._lock, driver_errors(self._settings.url):
                found = list(self._read())
        except ServerError:
            up = False
        said = "Whether the queue's server answered this scrape."
        yield gauge("amn_server_up", said, {(self._keys.queue,): up})
        yield from found

    def _read(self) -> Iterator[Metric]:
        client, keys, queue = self._client, self._keys, self._keys.queue
        live = read_service(client, keys)
        yield from counters(queue, live.counters)
        found = beside.read(client, keys, live.now_ms, jobs=jobs_possible(self._settings.url))
        absent = Counter((queue, one.kind) for one in missing(found, live.workers, live.now_ms))
        said = "Processes that ended with an error or give no sign, and did not come back."
        yield gauge(
            "amn_processes_missing", said, {(queue, kind): absent[queue, kind] for kind in _NOTED}, "kind"
        )
        yield from queue_metrics(queue, live, letters.count(client, keys))
        yield stage_metric(queue, stages.read_total(client, keys))
        memory = Memory(client, keys)
        yield from drift_metrics(queue, memory.findings(), memory.evaluated_at_ms())
        yield from alert_metrics(client, keys, live.now_ms)


def counters(queue: str, stats: Mapping[str, int]) -> Iterator[Metric]:
    """Returns the counters of the stats hash, 0 before the first count, so that the first event is a rise."""
    for count in COUNTS:
        labels = ("queue", count.label) if count.label else ("queue",)
        family = CounterMetricFamily(count.name, count.help, labels=labels)
        if not count.label:
            family.add_metric((queue,), stats.get(count.field, 0))
        known = {**dict.fromkeys(count.fields, 0), **stats} if count.label else {}
        parts = [field for field in sorted(known) if field.startswith(f"{count.field}:")]
        for field in parts[:LABELS_MAX]:
            family.add_metric((queue, field.partition(":")[2]), known[field])
        yield family


def queue_metrics(queue: str, live: Service, dead_letters: int) -> Iterator[Metric]:
    """The accounts of the requests, the server's files and memory, the streams, and the workers by kind."""
    server = live.server
    for name, text, value in (
        ("amn_requests_unanswered", "Requests accepted that have not ended.", live.unanswered),
        ("amn_requests_lost", "Of those, the ones that wait nowhere.", live.counters[LOST]),
        ("amn_server_persistence_failed", "Whether its last write failed.", server.persistence_failed),
        ("amn_server_memory_used_bytes", "Memory of the server.", server.used_memory_bytes),
        ("amn_server_memory_limit_bytes", "What it may use; 0: not known.", server.memory_limit_bytes),
        ("amn_dead_letters", "Dead letters kept.", dead_letters),
    ):
        yield gauge(name, text, {(queue,): value})
    of_streams: dict[str, tuple[str, Callable[[streams.StreamFacts], float | None]]] = {
        "entries": ("Entries waiting or leased.", lambda one: one.entries),
        "leased_entries": ("Entries leased.", lambda one: one.leased),
        "oldest_age_seconds": (
            "Age of the oldest entry; 0 when empty.",
            lambda one: (one.oldest_age_ms or 0) / 1000,
        ),
        "payload_bytes": ("Payload waiting or leased.", lambda one: one.payload_bytes),
    }
    for name, (text, value_of) in of_streams.items():
        samples = {(queue, stream): value_of(facts) for stream, facts in live.streams.items()}
        yield gauge(f"amn_stream_{name}", text, samples, "stream")
    backlogs = backlog.backlogs(live.streams, live.workers)
    said = "Until what waits now is served; the age of the oldest entry while none is."
    waits_s = {(queue, stream): one.backlog_s for stream, one in backlogs.items()}
    yield gauge("amn_stream_backlog_seconds", said, waits_s, "stream")
    busy = {(queue, kind): one.busy_ratio for kind, one in backlog.loads(backlogs).items()}
    yield gauge("amn_workers_busy_ratio", "Share of half a minute in which they worked.", busy, "kind")
    kinds = {(queue, kind): [one for one in live.workers if one.kind == kind] for kind in KINDS}
    alive = {labels: len(mine) for labels, mine in kinds.items()}
    stuck = {labels: sum(one.stuck for one in mine) for labels, mine in kinds.items()}
    ages_s = {labels: max((one.stuck_ms for one in mine), default=0) / 1000 for labels, mine in kinds.items()}
    yield gauge("amn_workers", "Workers seen lately.", alive, "kind")
    yield gauge("amn_workers_stuck", "Of those, ending nothing of what they hold, or silent.", stuck, "kind")
    yield gauge("amn_workers_progress_age_seconds", "Longest time without progress.", ages_s, "kind")


def stage_metric(queue: str, histograms: list[StageHistogram]) -> Metric:
    """The times of the stages."""
    labels = ("queue", "stage", "kind", "level", "outcome")
    text = "Time of a request in a stage of a worker, and from its submit to its end."
    family = HistogramMetricFamily("amn_stage_seconds", text, labels=labels)
    bounds = [*(str(us / 1e6) for us in BOUNDS_US), "+Inf"]
    for one in histograms:
        values = (queue, one.stage, one.kind, one.level, one.outcome)
        buckets = list(zip(bounds, itertools.accumulate(one.counts), strict=True))
        family.add_metric(values, buckets, sum_value=one.sum_us / 1e6)
    return family


def drift_metrics(queue: str, findings: list[Finding], evaluated_at_ms: int) -> Iterator[Metric]:
    """The judge's last findings."""
    said = "When the judge last finished; 0 for never."
    yield gauge("amn_judge_last_evaluation_timestamp_seconds", said, {(queue,): evaluated_at_ms / 1000})
    firing = {
        (queue, one.rule, one.severity, one.model, one.lane): one.state == "firing" and not one.beside
        for one in findings
    }
    unknown = {(queue, one.rule, one.model, one.lane): one.state == "insufficient" for one in findings}
    health = next((one.values for one in findings if one.rule == "monitor_health"), {})
    sampling = {(queue,): float(health["sampling"])} if "sampling" in health else {}
    said = "Whether a rule fires and speaks for itself."
    yield gauge("amn_rule_firing", said, firing, "rule", "severity", "model", "lane")
    said = "Whether a rule has too little data."
    yield gauge("amn_rule_insufficient", said, unknown, "rule", "model", "lane")
    yield gauge("amn_shadow_sampling_ratio", "Realised sampling of the last hour.", sampling)
    for name, parts in itertools.groupby(VALUES, key=lambda row: row[0]):
        rows = list(parts)
        samples = {
            (queue, one.model, one.lane, *slice_): float(one.values[value])
            for _, _, rule, value, slice_ in rows
            for one in findings
            if one.rule == rule and value in one.values
        }
        yield gauge(name, rows[0][1], samples, "model", "lane", *(["slice"] if rows[0][4] else []))


def alert_metrics(client: redis.Redis, keys: Keys, now_ms: int) -> Iterator[Metric]:
    """The alerts that fire by the state machine, and the messages that were not delivered."""
    queue, now = keys.queue, books.read(client, keys)
    firing: Counter[LabelValues] = Counter()
    silenced: Counter[LabelValues] = Counter()
    for alert in alerts(client, keys):
        if alert.phase in ("firing", "recovering"):
            firing[queue, alert.rule, alert.severity] += 1
            silenced[queue, alert.rule, alert.severity] += bool(alert.silence)
    yield gauge("amn_alerts_firing", "Alerts firing or recovering.", firing, "rule", "severity")
    yield gauge("amn_alerts_silenced", "Of those, held back by a silence.", silenced, "rule", "severity")
    said = "Incidents that no sender has taken up."
    yield gauge("amn_alerts_outbox_messages", said, {(queue,): now.untaken()})
    owed: defaultdict[LabelValues, list[int]] = defaultdict(list)
    for one in counted(now.undelivered()):
        owed[queue, one["sink"]].append(one["owed_ms"])
    under_way = {labels: len(times) for labels, times in owed.items()}
    oldest_s = {labels: (now_ms - min(times)) / 1000 for labels, times in owed.items()}
    yield gauge("amn_alerts_undelivered_messages", "Alerts with messages under way.", under_way, "sink")
    yield gauge("amn_alerts_oldest_undelivered_age_seconds", "Of the longest under way.", oldest_s, "sink")
    dead = len(counted(books.log(client, keys, "dead", now_ms - GIVEN_UP_FOR_MS)))
    yield gauge("amn_alerts_dead_messages", "Messages given up in the last 6 h.", {(queue,): dead})
    looked_ms = int(cast("bytes | None", client.get(keys.alerts_prefix + "looked_ms")) or 0)
    said = "When a sender last looked; 0 for never."
    yield gauge("amn_alerts_sender_last_look_timestamp_seconds", said, {(queue,): looked_ms / 1000})


def gauge(name: str, text: str, samples: Mapping[Any, float | None], *labels: str) -> Metric:
    """A gauge with its samples by label values; every metric has the queue as its first label."""
    family = GaugeMetricFamily(name, text, labels=("queue", *labels))
    for values, sample in samples.items():
        if sample is not None:
            family.add_metric(values, sample)
    return family


def registry(settings: ProducerSettings) -> CollectorRegistry:
    """The queue's metrics and nothing else; registering them does not need the server."""
    made = CollectorRegistry(auto_describe=False)
    made.register(QueueCollector(settings))
    return made


def pages(settings: ProducerSettings, token: str = "") -> ASGIApp:
    """The addresses, for whoever bears the token: `/metrics`; and `/backlog`, JSON for an autoscaler.

    `/healthz` says nothing but that this process answers, and wants no token.
    """
    made, client, keys = registry(settings), connect(settings), Keys(settings.queue)

    def read() -> Response:
        try:
            with driver_errors(settings.url):
                return JSONResponse(backlog.read(client, keys))
        except ServerError as error:
            return JSONResponse({"error": str(error)}, 503)

    async def answer(request: Request) -> Response:
        if request.url.path == "/healthz":
            return Response(status_code=204)
        if token and not bears(request.headers, token.encode()):
            return Response(status_code=401, headers={"www-authenticate": "Bearer"})
        if request.url.path == "/backlog":
            return await asyncio.to_thread(read)
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await asyncio.to_thread(encode, made), headers={"content-type": media_type})

    return Starlette(routes=[Route(path, answer) for path in ("/healthz", "/backlog", "/metrics")])
