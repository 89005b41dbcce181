"""The queue, the drift judgement and the alerts as Prometheus metrics, read anew at each scrape.

Names are stable and carry their unit; labels take few values: no id of a request, worker or alert is
among them. docs/alerts.md lists them all.
"""

from __future__ import annotations

import hmac
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.server import HTTPServer
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, make_server

import redis
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from ops.alerts.outbox import Outbox
from ops.alerts.sender import looked_key
from ops.alerts.store import alerts
from ops.alerts.watch import counted, given_up
from ops.drift.kept.memory import Memory
from ops.findings import Finding
from ops.health import streams, workers
from ops.health.counts import COUNTS
from ops.rules.live import KINDS, Live, look
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

Labels = tuple[str, ...]


#: Of one family: a hash that somebody filled with names must not fill Prometheus.
LABELS_MAX = 100
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
    (
        "amn_input_recent_divergence_bits",
        "OOD scores of the last minutes against the baseline.",
        "input_drift",
        "recent_divergence_bits",
        (),
    ),
)


class QueueCollector(Collector):
    """Reads one queue; a server that is away is a metric too."""

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings, self._keys = settings, Keys(settings.queue)
        self._client = connect(settings)
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry must not need the server."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics, or `amn_server_up 0` alone."""
        up = gauge("amn_server_up", "Whether the queue's server answered this scrape.")
        found: list[Metric] = []
        try:
            with self._lock, driver_errors(self._settings.url):
                found = list(self._read())
            add(up, (self._keys.queue,), 1)
        except ServerError:
            add(up, (self._keys.queue,), 0)
        yield up
        yield from found

    def _read(self) -> Iterator[Metric]:
        client, keys, queue = self._client, self._keys, self._keys.queue
        live = look(client, keys)
        yield from counters(queue, live.counters)
        yield from service_metrics(queue, live)
        yield from stream_metrics(
            queue, live.streams, streams.read_letters(client, keys, live.now_ms).entries
        )
        yield from worker_metrics(queue, live.workers)
        memory = Memory(client, keys)
        yield from drift_metrics(queue, memory.findings(), memory.evaluated_at_ms())
        yield from alert_metrics(client, keys, live.now_ms)


def counters(queue: str, stats: Mapping[str, int]) -> Iterator[Metric]:
    """Of the stats hash. One that has not counted yet is 0, so that its first event is a rise."""
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


def service_metrics(queue: str, live: Live) -> Iterator[Metric]:
    """The accounts of the requests, and the server's files and memory."""
    for name, text, value in (
        ("amn_requests_unanswered", "Requests accepted that have not ended.", live.unanswered),
        ("amn_requests_lost", "Of those, the ones that wait nowhere.", live.lost),
        (
            "amn_server_persistence_failed",
            "Whether the server could not write its files.",
            live.server.persistence_failed,
        ),
        ("amn_server_memory_used_bytes", "Memory of the server.", live.server.used_memory_bytes),
        ("amn_server_memory_limit_bytes", "What it may use; 0: not known.", live.server.memory_limit_bytes),
    ):
        family = gauge(name, text)
        add(family, (queue,), float(value))
        yield family


def stream_metrics(queue: str, found: Mapping[str, streams.StreamFacts], dead: int) -> Iterator[Metric]:
    """What waits and for how long."""
    families = (
        gauge("amn_stream_entries", "Entries waiting or leased.", "stream"),
        gauge("amn_stream_leased_entries", "Entries leased.", "stream"),
        gauge("amn_stream_oldest_age_seconds", "Age of the oldest entry; 0 when empty.", "stream"),
        gauge("amn_stream_payload_bytes", "Payload waiting or leased.", "stream"),
    )
    for name, facts in found.items():
        values = (facts.entries, facts.leased, (facts.oldest_age_ms or 0) / 1000, facts.payload_bytes)
        for family, value in zip(families, values, strict=True):
            if value is not None:
                add(family, (queue, name), value)
    yield from families
    letters = gauge("amn_dead_letters", "Dead letters kept.")
    add(letters, (queue,), dead)
    yield letters


def worker_metrics(queue: str, found: Sequence[workers.WorkerFacts]) -> Iterator[Metric]:
    """Who is there and makes progress, by kind."""
    alive = gauge("amn_workers", "Workers seen lately.", "kind")
    stuck = gauge("amn_workers_stuck", "Of those, holding entries and ending none.", "kind")
    longest = gauge("amn_workers_progress_age_seconds", "Longest time without progress.", "kind")
    for kind in KINDS:
        mine = [worker for worker in found if worker.kind == kind]
        add(alive, (queue, kind), len(mine))
        add(stuck, (queue, kind), sum(worker.stuck for worker in mine))
        add(longest, (queue, kind), max((worker.stuck_ms for worker in mine), default=0) / 1000)
    yield from (alive, stuck, longest)


def drift_metrics(queue: str, findings: list[Finding], evaluated_at_ms: int) -> Iterator[Metric]:
    """What the judge said last."""
    heard = gauge("amn_judge_last_evaluation_timestamp_seconds", "When the judge last finished; 0 for never.")
    add(heard, (queue,), evaluated_at_ms / 1000)
    firing = gauge(
        "amn_rule_firing", "Whether a rule fires and speaks for itself.", "rule", "severity", "model", "lane"
    )
    unknown = gauge("amn_rule_insufficient", "Whether a rule has too little data.", "rule", "model", "lane")
    sampling = gauge("amn_shadow_sampling_ratio", "Realised sampling of the last hour.")
    for one in findings:
        labels = (queue, one.rule, one.severity, one.model, one.lane)
        add(firing, labels, int(one.state == "firing" and not one.beside))
        add(unknown, (queue, one.rule, one.model, one.lane), int(one.state == "insufficient"))
        if one.rule == "monitor_health" and "sampling" in one.values:
            add(sampling, (queue,), float(one.values["sampling"]))
    yield from (heard, firing, unknown, sampling, *_values(queue, findings))


def _values(queue: str, findings: list[Finding]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    for name, text, rule, value, slice_ in VALUES:
        labels = ("model", "lane", "slice") if slice_ else ("model", "lane")
        family = families.setdefault(name, gauge(name, text, *labels))
        for one in findings:
            if one.rule == rule and value in one.values:
                add(family, (queue, one.model, one.lane, *slice_), float(one.values[value]))
    yield from families.values()


def alert_metrics(client: redis.Redis, keys: Keys, now_ms: int) -> Iterator[Metric]:
    """What fires by the state machine, and what was not delivered."""
    firing = gauge("amn_alerts_firing", "Alerts firing or recovering.", "rule", "severity")
    silenced = gauge("amn_alerts_silenced", "Of those, held back by a silence.", "rule", "severity")
    counts: dict[Labels, list[int]] = {}
    for alert in alerts(client, keys):
        if alert.phase in ("firing", "recovering"):
            count = counts.setdefault((keys.queue, alert.rule, alert.severity), [0, 0])
            count[0] += 1
            count[1] += bool(alert.silence)
    for labels, (all_, held) in counts.items():
        add(firing, labels, all_)
        add(silenced, labels, held)
    yield from (firing, silenced)
    outbox = Outbox(client, keys)
    waits = gauge("amn_alerts_outbox_messages", "Messages that no sender has taken.")
    add(waits, (keys.queue,), outbox.waits())
    under_way = gauge("amn_alerts_undelivered_messages", "Alerts with messages under way.", "sink")
    oldest = gauge("amn_alerts_oldest_undelivered_age_seconds", "Of the longest under way.", "sink")
    taken: dict[str, list[int]] = {}
    for one in counted(outbox.undelivered()):
        taken.setdefault(one.sink, []).append(one.taken_ms)
    for sink, times in taken.items():
        add(under_way, (keys.queue, sink), len(times))
        add(oldest, (keys.queue, sink), (now_ms - min(times)) / 1000)
    dead = gauge("amn_alerts_dead_messages", "Messages given up in the last 6 h.")
    add(dead, (keys.queue,), len(given_up(outbox, now_ms)))
    looked = gauge("amn_alerts_sender_last_look_timestamp_seconds", "When a sender last looked; 0 for never.")
    add(looked, (keys.queue,), int(cast("bytes | None", client.get(looked_key(keys))) or 0) / 1000)
    yield from (waits, under_way, oldest, dead, looked)


def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """An empty gauge; every metric has the queue as its first label."""
    return GaugeMetricFamily(name, text, labels=("queue", *labels))


def add(family: GaugeMetricFamily, labels: Labels, value: float) -> None:
    """One sample."""
    family.add_metric(labels, value)


def registry(settings: ProducerSettings) -> CollectorRegistry:
    """The queue's metrics and nothing else."""
    made = CollectorRegistry(auto_describe=False)
    made.register(QueueCollector(settings))
    return made


def serve(
    settings: ProducerSettings, host: str, port: int, token: str = ""
) -> tuple[HTTPServer, threading.Thread]:
    """Starts answering scrapes at `/metrics`, with a token to those who bear it; `shutdown` ends it."""
    answer, wanted = make_wsgi_app(registry(settings)), f"Bearer {token}".encode()

    def guarded(environ: dict[str, Any], start: Any) -> Any:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("utf-8", "replace")
        if token and not hmac.compare_digest(given, wanted):
            start("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
            return [b""]
        return answer(environ, start)

    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
    server: HTTPServer = make_server(host, port, guarded, kind, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="amn-metrics", daemon=True)
    thread.start()
    return server, thread


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no event."""
