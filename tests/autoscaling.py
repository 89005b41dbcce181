"""The autoscaler of ops/deploy/kubernetes/keda.yaml, simulated around real workers and a real server.

    python -m tests.autoscaling              # with the sample's own times: half an hour
    python -m tests.autoscaling --pace 20    # its times divided by 20, as the test has it

What is simulated is the controller alone, by the formula that Kubernetes documents for a
HorizontalPodAutoscaler: desired = ceil(ready * figure / target), unless figure / target is within a tenth of
1; the largest of the figures' answers; when that is less than now, the largest of the stabilisation window;
within the policies.
It reads the figures where KEDA would, from `/backlog` over HTTP, by the sample's own paths and targets.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ops.metrics import pages
from producer import Options, Producer, ProducerSettings
from tests.served import served
from workers.pool.child import Child
from workers.pool.settings import PoolSettings

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "ops" / "deploy" / "kubernetes" / "keda.yaml"
TOLERANCE, SYNC_S = 0.1, 15.0
#: What a request takes more, so that a worker serves about ninety of them a second.
PAUSE_MS = 10


class Controller:
    """A HorizontalPodAutoscaler, as the scaled object of `kind` describes it, its times divided by `pace`."""

    def __init__(self, kind: str, pace: float = 1.0, replicas_max: int | None = None) -> None:
        documents = yaml.safe_load_all(SAMPLE.read_text("utf-8"))
        [spec] = [one["spec"] for one in documents if one["metadata"]["name"] == f"amn-{kind}"]
        self.least, self.most = spec["minReplicaCount"], replicas_max or spec["maxReplicaCount"]
        self.triggers = [one["metadata"] for one in spec["triggers"] if one["metricType"] == "Value"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self._up, self._down, self._pace = behavior["scaleUp"], behavior["scaleDown"], pace
        assert self._up["stabilizationWindowSeconds"] == 0
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()
        self.replicas = self.least

    def turn(self, now_s: float, ready: int, answer: Mapping[str, Any]) -> int:
        """One look; returns how many are to run now."""
        now_s *= self._pace
        wanted = max(min(self._proposed(ready, answer), self.most), self.least)
        self._recommended.append((now_s, wanted))
        while self._recommended[0][0] < now_s - self._down["stabilizationWindowSeconds"]:
            self._recommended.popleft()
        if wanted < self.replicas:
            wanted = min(max(count for _, count in self._recommended), self.replicas)
        if wanted > self.replicas:
            wanted = min(wanted, max(self._limit(one, now_s, 1) for one in self._up["policies"]))
        elif wanted < self.replicas:
            wanted = max(wanted, min(self._limit(one, now_s, -1) for one in self._down["policies"]))
        if wanted != self.replicas:
            self._changes.append((now_s, wanted - self.replicas))
            self.replicas = wanted
        return wanted

    def _proposed(self, ready: int, answer: Mapping[str, Any]) -> int:
        proposals = []
        for trigger in self.triggers:
            figure: Any = answer
            for step in trigger["valueLocation"].split("."):
                figure = figure[step]
            ratio = figure / float(trigger["targetValue"])
            proposals.append(self.replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * ready))
        return max(proposals)

    def _limit(self, policy: Mapping[str, Any], now_s: float, sign: int) -> int:
        """How far one policy lets it go: from where it stood when the policy's period began."""
        since_s = now_s - policy["periodSeconds"]
        lately = sum(change for at_s, change in self._changes if at_s > since_s and change * sign > 0)
        began = self.replicas - lately
        step = math.ceil(began * policy["value"] / 100) if policy["type"] == "Percent" else policy["value"]
        return int(began + sign * step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the controller saw and did at one moment."""

    at_s: float
    replicas: int
    ready: int
    backlog_s: float
    busy_ratio: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The run: each look, when the load ended, and what became of the requests."""

    looks: list[Look] = field(default_factory=list)
    load_ended_s: float = 0.0
    submitted: int = 0
    answered: int = 0


class Workers:
    """Real worker processes, as many as are asked for."""

    def __init__(self, url: str, log: Path) -> None:
        settings = PoolSettings(url=url, artifacts=ROOT / "artifacts" / "lvm", sample_rate=0)
        command = settings.command("amn", settings.artifacts)
        self._command = [command[0], str(ROOT / "tests" / "slowed.py"), *command[command.index("amn") :]]
        self._command += ["--batch-max", "16"]
        self._environment = {
            **settings.environment(),
            "AMN_TESTS_PAUSE_MS": str(PAUSE_MS),
            "PYTHONPATH": str(ROOT),
        }
        self._log, self.running, self._leaving = log, list[Child](), list[Child]()

    def scale(self, count: int) -> None:
        while len(self.running) < count:
            self.running.append(Child("amn", self._command, self._environment, self._log))
        while len(self.running) > count:
            child = self.running.pop()
            child.leave()
            self._leaving.append(child)

    @property
    def ready(self) -> int:
        return sum(child.is_ready() for child in self.running)

    def close(self) -> None:
        for child in self.running:
            child.leave()
        for child in (*self.running, *self._leaving):
            child.end(15)


def simulate(
    url: str, folder: Path, pace: float, load_s: float, say: Callable[[Look], None], replicas_max: int = 6
) -> Outcome:
    """Load of 2.6 workers' worth on one worker, for so long and, on a slow machine, until nothing waits; then
    none, until one worker is left again."""
    outcome, stopping, patience_s = Outcome(), threading.Event(), 3 * max(load_s, 40)
    controller, workers = Controller("amn", pace, replicas_max), Workers(url, folder / "workers.log")
    vectors = np.load(ROOT / "artifacts" / "sample" / "sequences.npz")["vectors"][:5].astype("f4")
    context = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    settings = ProducerSettings(url=url)
    workers.scale(controller.replicas)
    loading, began_s = threading.Thread(target=load, args=(settings, context, stopping, outcome)), 0.0
    with served(pages(settings)) as port:
        try:
            while not workers.ready:
                time.sleep(0.1)
            loading.start()
            began_s = time.monotonic()
            while not stopping.is_set() or controller.replicas > controller.least:
                time.sleep(SYNC_S / pace)
                at_s = time.monotonic() - began_s
                settled = outcome.looks and outcome.looks[-1].backlog_s < 0.5
                if at_s > (load_s if settled else patience_s) and not stopping.is_set():
                    outcome.load_ended_s = at_s
                    stopping.set()
                if answer := figures(port):
                    outcome.looks.append(turned(controller, workers, at_s, answer))
                    say(outcome.looks[-1])
                assert at_s < patience_s + 3_000 / pace, "it does not come back"
        finally:
            stopping.set()
            if loading.ident is not None:
                loading.join()
            workers.close()
    return outcome


def load(settings: ProducerSettings, context: Any, stopping: threading.Event, outcome: Outcome) -> None:
    """Sends 2.6 workers' worth until it is told to stop, and waits for all answers."""
    with Producer(settings=settings) as producer:
        handles = []
        while not stopping.wait(0.1):
            options = [Options(lane="general")] * round(0.1 * 2.6 * 1000 / PAUSE_MS * 0.9)
            handles += producer.submit_many([context] * len(options), options=options)
        outcome.submitted = len(handles)
        outcome.answered = len({handle.result(60_000).id for handle in handles})


def figures(port: int) -> dict[str, Any] | None:
    """What `/backlog` says; None, at which Kubernetes changes nothing, where there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/backlog", timeout=10) as given:
            found: dict[str, Any] = json.load(given)
            return found
    except OSError:
        return None


def turned(controller: Controller, workers: Workers, at_s: float, answer: Mapping[str, Any]) -> Look:
    """One turn of the controller, and its workers scaled by it."""
    ready = workers.ready
    workers.scale(controller.turn(at_s, ready, answer))
    seen = {name: answer["kinds"]["amn"][name] for name in ("backlog_s", "busy_ratio")}
    return Look(at_s=at_s, replicas=controller.replicas, ready=ready, **seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pace", type=float, default=1.0)
    pace = parser.parse_args().pace
    from tests.servers import Server

    server = Server("valkey").start()
    folder = Path(tempfile.mkdtemp(prefix="amn-autoscaling-"))
    try:
        outcome = simulate(
            server.url,
            folder,
            pace,
            max(900 / pace, 45),
            lambda look: print(
                f"{look.at_s:7.1f} s  {look.replicas} wanted, {look.ready} ready  "
                f"backlog {look.backlog_s:6.2f} s  busy {look.busy_ratio:.2f}",
                flush=True,
            ),
        )
    finally:
        server.close()
    print(f"{outcome.answered} of {outcome.submitted} answered")


if __name__ == "__main__":
    main()
