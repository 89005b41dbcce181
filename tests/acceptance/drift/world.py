"""A service whose clock is compressed: real vectors, real scoring, a real judge, alerts and a receiver."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.slices import Slicer
from ops.alerts import AlertSettings, apply
from ops.alerts.config import AlertsConfig, Sinks
from ops.alerts.secret import Secret
from ops.alerts.sender import Sender
from ops.alerts.sinks.services import Webhook
from ops.drift.loop import Judge
from ops.drift.settings import JudgeSettings
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys
from workers.shadow.scores import Arrival, Labels, arrivals, increments, prediction_half, truth_half

Vectors = NDArray[np.float32]
Increments = list[tuple[str, int]]
ARTIFACTS = Path(__file__).resolve().parents[3] / "artifacts"
KEYS = Keys("main")
MODEL = "amn@sample"
#: Requests a minute that were sampled and met their truth.
OOD, ID = 14, 26
#: At which rate all of it is sampled.
ONE_IN = 20
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
        contexts[:, since:] = (contexts[:, since:].reshape(-1, 768) @ rotation).reshape(-1, 5 - since, 768)
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


@dataclass(frozen=True)
class Scorer:
    """Scores windows with the functions of the shadow worker; the slicer is the shipped one."""

    predict: Callable[[Vectors], Vectors]
    slicer: Slicer

    def __call__(self, windows: Windows, slice_: str, served: Vectors | None = None) -> list[Increments]:
        """What each window adds to a minute.

        Args:
            slice_: As the producer names it; "" leaves it to the score.
            served: (N, 768), where it is not the model that answers.
        """
        answers = self.predict(windows.contexts) if served is None else served
        found = []
        for context, vector, truth in zip(windows.contexts, answers, windows.truths, strict=True):
            ood = self.slicer.measure(context)
            labels = Labels(MODEL, "general", slice_ or self.slicer.slice_of(ood.score))
            arrival = Arrival(weight=ONE_IN, ood=ood.score, cell=ood.cell)
            half = prediction_half(b"0-0", labels, context, vector, None, arrival)
            found.append([*arrivals(half, labels, arrival), *increments(half, truth_half(truth))])
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

    def __init__(self, admin: Any, start_min: int = START_MIN) -> None:
        self.admin = admin
        self.receiver = Receiver()
        key = Secret(base64.b64encode(bytes(32)).decode())
        sink = Webhook(name="hook", url=self.receiver.url, keys=(key,), severities=("page",))
        self.config = AlertsConfig(settings=AlertSettings(), sinks={"hook": sink})
        self.sender = self.new_sender()
        self.minute = start_min
        self.draw = random.Random(5)
        self.judge = self.new_judge()
        self.begun: list[tuple[str, str]] = []
        self.ended: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        self.at_worst: dict[str, Any] = {}
        self.findings: list[Finding] = []

    def new_judge(self) -> Judge:
        return Judge(self.admin, KEYS, JudgeSettings(learn_max_h=24), self.alert)

    def new_sender(self) -> Sender:
        return Sender(self.admin, KEYS, Sinks(lambda: self.config), clock=lambda: self.minute * 60_000)

    def kill_judge_and_sender(self) -> None:
        """As when both are killed, and their leases run out."""
        self.admin.delete(leader_key(KEYS), KEYS.alerts_prefix + "leader")
        self.judge, self.sender = self.new_judge(), self.new_sender()

    def alert(self, findings: Sequence[Finding], now_ms: int, fence: int) -> None:
        """Tells the real alerts; notes their news about pages."""
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
                self.look()

    def look(self) -> None:
        """Judge and sender take a turn."""
        self.judge.turn(self.minute * 60_000)
        self.sender.tick()

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
