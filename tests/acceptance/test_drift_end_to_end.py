"""Real vectors, real model, real scoring, a compressed clock: what the judge says as things change.

Two days of traffic are drawn from the shipped sample and scored by the shadow worker's own
functions; the judge looks every five minutes of that time. In each scenario something changes for
three hours and is put right again. Alerts, their sender and the receiver are real too.
"""

from __future__ import annotations

import base64
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from amn.predictor import Predictor
from ops.alerts import AlertSettings, apply
from ops.alerts.config import AlertsConfig
from ops.alerts.delivery import Delivery
from ops.alerts.secret import Secret
from ops.alerts.sender import Sender
from ops.alerts.sinks.webhook import Webhook
from ops.drift.findings import Finding
from ops.drift.leader import leader_key
from ops.drift.loop import Judge
from ops.drift.settings import JudgeSettings
from producer.keys import Keys
from workers.shadow_scores import Labels, increments, prediction_half, truth_half

pytestmark = pytest.mark.timeout(300)

Vectors = NDArray[np.float32]
Increments = list[tuple[str, int]]
ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"
KEYS = Keys("main")
MODEL = "amn@sample"
#: Requests a minute that were sampled and met their truth.
OOD, ID = 14, 26
#: Different minutes; each is lived through several times.
_MINUTES_DRAWN = 100
START_MIN = 29_900_160  # midnight UTC


@dataclass(frozen=True)
class Windows:
    """Contexts (N, 5, 768) and the vectors that came next (N, 768)."""

    contexts: Vectors
    truths: Vectors

    def turned(self, rotation: Vectors, since: int = 0) -> Windows:
        """From another encoder, all but the first `since` vectors of each context."""
        contexts = self.contexts.copy()
        contexts[:, since:] = contexts[:, since:] @ rotation
        return Windows(contexts, self.truths @ rotation)


class Sample:
    """The shipped sequences."""

    def __init__(self) -> None:
        with np.load(ARTIFACTS / "sample" / "sequences.npz", allow_pickle=False) as stored:
            rows = stored["vectors"].astype(np.float32)
            self._article, slices = stored["article"], stored["article_slice"]
        self._rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self._slice = slices[self._article]

    def windows(self, name: str, stride: int = 1) -> Windows:
        """Of one slice; a stride above 1 makes a text whose neighbours are less alike."""
        last = 5 * stride
        starts = [
            i
            for i in range(len(self._rows) - last)
            if self._article[i] == self._article[i + last] and self._slice[i] == name
        ]
        at = np.array(starts)
        return Windows(self._rows[at[:, None] + stride * np.arange(5)], self._rows[at + last])


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


@pytest.fixture(scope="module")
def predict() -> Callable[[Vectors], Vectors]:
    root = Path(os.environ.get("AMN_ARTIFACTS") or ARTIFACTS / "lvm")
    predictor = Predictor.open(root / "production_model", root / "reference_bank")
    return lambda contexts: np.asarray(predictor.forward(np.ascontiguousarray(contexts)))


@pytest.fixture(scope="module")
def rotation() -> Vectors:
    """Turns half of the dimensions, always in the same way."""
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0]
    whole = np.eye(768)
    whole[::2, ::2] = turned
    return whole.astype(np.float32)


def scored(windows: Windows, served: Vectors, slice_: str) -> list[Increments]:
    """What the shadow worker adds to a minute for each window."""
    labels = Labels(MODEL, "general", slice_)
    found = []
    for context, vector, truth in zip(windows.contexts, served, windows.truths, strict=True):
        half = prediction_half(b"0-0", labels, context, vector, None)
        found.append([(labels.field("predictions"), 1), *increments(half, truth_half(truth))])
    return found


class Receiver:
    """A webhook's other side on a loopback port, which can be ill, die and come back.

    Attributes:
        answers: Statuses of the next requests; 200 once they are used up.
        refused: How many were not accepted.    accepted: Bodies, as they came.
    """

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.refused = 0
        self.accepted: list[dict[str, Any]] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.answers.pop(0) if receiver.answers else 200
                if status == 200:
                    receiver.accepted.append(json.loads(body))
                else:
                    receiver.refused += 1
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def pages(self) -> list[tuple[str, str]]:
        """Beginnings and ends of pages that were accepted; reminders, which come after 4 h, apart."""
        data = [event["data"] for event in self.accepted if event["data"]["kind"] != "reminder"]
        return [(one["kind"], one["rule"]) for one in data if one["severity"] == "page"]


class Service:
    """Minutes of traffic, a judge and a sender that are told the time, and who is told by them."""

    def __init__(self, admin: Any) -> None:
        self.admin = admin
        self.receiver = Receiver()
        key = Secret(base64.b64encode(bytes(32)).decode())
        sink = Webhook(name="hook", url=self.receiver.url, keys=(key,), severities=("page",))
        self.config = AlertsConfig(settings=AlertSettings(), sinks={"hook": sink})
        self.delivery = Delivery(admin, KEYS, self.config, lambda: self.minute * 60_000)
        self.sender = self.new_sender()
        self.minute = START_MIN
        self.draw = random.Random(5)
        self.judge = self.new_judge()
        self.begun: list[tuple[str, str]] = []
        self.ended: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        self.findings: list[Finding] = []

    def new_judge(self) -> Judge:
        return Judge(self.admin, KEYS, JudgeSettings(learn_max_h=24), self.alert)

    def new_sender(self) -> Sender:
        return Sender(self.admin, KEYS, self.config, self.delivery.deliver, self.delivery.repeat_state)

    def kill_judge_and_sender(self) -> None:
        """As when both are killed, and their leases run out."""
        self.admin.delete(leader_key(KEYS), KEYS.alerts_prefix + "leader")
        self.judge, self.sender = self.new_judge(), self.new_sender()

    def alert(self, findings: Sequence[Finding], now_ms: int, fence: int) -> None:
        """Tells the real alerts; notes what they put into the outbox about pages."""
        self.findings = list(findings)
        for change in apply(self.admin, KEYS, findings, now_ms=now_ms, fence=fence):
            if change.alert.severity != "page":
                continue
            name = (change.alert.rule, change.alert.lane)
            if change.kind == "trigger":
                self.begun.append(name)
                self.values[change.alert.rule] = change.alert.values
            elif change.kind == "resolve":
                self.ended.append(name)

    def live(
        self, hours: float, ood: list[Increments], inside: list[Increments], *, judged: bool = True
    ) -> None:
        minutes = [self.drawn(ood, inside) for _ in range(_MINUTES_DRAWN)]
        for _ in range(round(60 * hours)):
            with self.admin.pipeline(transaction=False) as pipe:
                sums = self.draw.choice(minutes)
                pipe.hset(f"{KEYS.drift_minute_prefix}{self.minute}", mapping=sums)
                pipe.zadd(KEYS.drift_minutes, {str(self.minute): self.minute})
                pipe.execute()
            self.minute += 1
            if judged and self.minute % 5 == 0:
                self.judge.turn(self.minute * 60_000)
                self.sender.tick(self.minute * 60_000)

    def drawn(self, ood: list[Increments], inside: list[Increments]) -> dict[str, int]:
        """The sums of one minute of requests drawn at random."""
        sums: Counter[str] = Counter()
        for pool, count in ((ood, OOD), (inside, ID)):
            for one in self.draw.choices(pool, k=count):
                for field, amount in one:
                    sums[field] += amount
        return dict(sums)

    def one(self, rule: str) -> Finding:
        return next(f for f in self.findings if f.rule == rule and f.lane == "")


@pytest.fixture(scope="module")
def pools(sample: Sample, predict: Callable[[Vectors], Vectors]) -> dict[str, list[Increments]]:
    """Scores of healthy traffic, by slice."""
    found = {}
    for name in ("ood", "id"):
        windows = sample.windows(name)
        found[name] = scored(windows, predict(windows.contexts), name)
    return found


@pytest.fixture
def service(_session_servers: Any, pools: dict[str, list[Increments]]) -> Iterator[Service]:
    """A day in health, from which the judge has learned its baseline, and three hours more."""
    admin = _session_servers("valkey").client()
    admin.flushall()
    service = Service(admin)
    service.live(24.2, pools["ood"], pools["id"], judged=False)
    service.live(3, pools["ood"], pools["id"])
    assert service.begun == []
    assert service.one("ood_delta").state == "ok"
    yield service
    service.delivery.http.close()
    service.receiver.stop()
    admin.close()


def test_an_encoder_that_changes_under_running_documents_pages_by_level(
    service: Service,
    sample: Sample,
    predict: Callable[[Vectors], Vectors],
    rotation: Vectors,
    pools: dict[str, list[Increments]],
) -> None:
    """Contexts hold three old vectors and two new ones: both slices fall, and D even rises."""
    changed = {}
    for name in ("ood", "id"):
        windows = sample.windows(name).turned(rotation, since=3)
        changed[name] = scored(windows, predict(windows.contexts), name)
    service.live(3, changed["ood"], changed["id"])
    assert service.begun == [("level", "")]
    assert service.one("ood_delta").state == "ok"
    assert service.one("fast_drop").state == "ok"
    text = service.one("level").summary
    assert "m_OOD -0.0" in text
    assert "m_ID -0.0" in text
    service.live(5, pools["ood"], pools["id"])
    assert service.ended == [("level", "")]
    assert service.begun == [("level", "")]


def test_a_clean_change_of_encoder_costs_less_than_the_card_minds(
    service: Service,
    sample: Sample,
    predict: Callable[[Vectors], Vectors],
    rotation: Vectors,
) -> None:
    """Once whole contexts come from the new encoder, this model falls back on their mean.

    Measured on the sample: m_ID falls by 0.016 and m_OOD not at all, so that nobody is woken.
    """
    changed = {}
    for name in ("ood", "id"):
        windows = sample.windows(name).turned(rotation)
        changed[name] = scored(windows, predict(windows.contexts), name)
    service.live(4, changed["ood"], changed["id"])
    assert service.begun == []


def test_a_changed_domain_pages_by_the_delta_and_blames_the_ood_mean(
    service: Service,
    sample: Sample,
    predict: Callable[[Vectors], Vectors],
    pools: dict[str, list[Increments]],
) -> None:
    windows = sample.windows("ood", stride=3)
    changed = scored(windows, predict(windows.contexts), "ood")
    service.live(3, changed, pools["id"])
    assert service.begun == [("fast_drop", "")]
    assert service.values["fast_drop"]["change_ood"] < -0.02  # at the first moment
    values = service.one("fast_drop").values
    assert values["change_ood"] == pytest.approx(-0.056, abs=0.015)
    assert values["change_id"] == pytest.approx(0.0, abs=0.01)
    assert abs(int(values["changed_at_min"]) - (service.minute - 180)) <= 30
    service.live(5, pools["ood"], pools["id"])
    assert service.ended == [("fast_drop", "")]
    assert service.receiver.pages() == [("trigger", "fast_drop"), ("resolve", "fast_drop")]


def test_a_degraded_model_is_one_page_though_judge_sender_and_receiver_die_or_are_ill(
    service: Service, sample: Sample, pools: dict[str, list[Increments]]
) -> None:
    """The model repeats the last vector: both means fall. The receiver gets one trigger, one resolve."""
    changed = {}
    for name in ("ood", "id"):
        windows = sample.windows(name)
        changed[name] = scored(windows, windows.contexts[:, -1], name)
    service.receiver.answers = [500, 429, 503]
    for hours in (0.4, 0.4, 1.2):
        service.live(hours, changed["ood"], changed["id"])
        service.kill_judge_and_sender()
    assert service.begun == [("level", "")]
    assert service.receiver.refused == 3
    assert service.receiver.pages() == [("trigger", "level")]
    service.receiver.stop()  # and is away while the incident ends
    service.live(2, pools["ood"], pools["id"])
    service.kill_judge_and_sender()
    service.live(2, pools["ood"], pools["id"])
    assert service.ended == [("level", "")]
    assert service.receiver.pages() == [("trigger", "level")]
    service.receiver.start()
    service.live(2, pools["ood"], pools["id"])
    assert service.receiver.pages() == [("trigger", "level"), ("resolve", "level")]
    assert service.begun == [("level", "")]


def test_a_better_model_is_no_alarm(
    service: Service, sample: Sample, pools: dict[str, list[Increments]]
) -> None:
    """One that knows more of the truth in distribution only, so that D falls by more than 0.03."""
    windows = sample.windows("id")
    mixed = windows.contexts.mean(axis=1) + 0.5 * windows.truths
    better = scored(windows, mixed / np.linalg.norm(mixed, axis=1, keepdims=True), "id")
    service.live(5, pools["ood"], better)
    assert service.begun == []
    assert service.one("fast_drop").severity == "ticket"
    assert service.one("fast_drop").state == "firing"
