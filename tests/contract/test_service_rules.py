"""From a fault to the receiver: a real server, a real judge and sender, and an HTTP receiver."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from receiver import Receiver, running
from rig import show_worker

from ops.alerts import AlertSettings, apply
from ops.alerts.config import AlertsConfig, Sinks
from ops.alerts.secret import Secret
from ops.alerts.sender import Sender
from ops.alerts.sinks.services import PagerDuty
from ops.alerts.watch import ServerDown
from ops.clock import server_now_ms
from ops.drift.loop import Judge
from ops.drift.settings import JudgeSettings
from producer import Producer, ProducerSettings
from producer.errors import QueueFull
from producer.keys import GROUP, Keys
from producer.transport.connection import connect
from workers.pulse import Pulse

MIN = 60_000
KEYS = Keys("main")


class OnCall:
    """A judge that looks once a minute, a sender, and what the receiver was told.

    Minutes pass for the judge by its argument; ages are the server's, so that a test that wants an old
    entry adds one.
    """

    def __init__(self, client: Any, receiver: Receiver) -> None:
        self.client, self.receiver = client, receiver
        self.now_ms = self.began_ms = server_now_ms(client)
        sink = PagerDuty(name="pager", routing_key=Secret("k" * 32), url=receiver.url + "/v2/enqueue")
        self.settings = AlertSettings(environment="prod")
        config = AlertsConfig(settings=self.settings, sinks={"pager": sink})
        self.sender = Sender(client, KEYS, Sinks(lambda: config), clock=lambda: self.now_ms)
        self.judge = Judge(client, KEYS, JudgeSettings(), self._tell)

    def _tell(self, findings: Any, now_ms: int, fence: int) -> None:
        apply(self.client, KEYS, findings, now_ms=now_ms, fence=fence, settings=self.settings)

    def minutes(self, count: int) -> None:
        for _ in range(count):
            self._breathe()
            self.judge.turn(self.now_ms)
            for _ in range(3):
                self.sender.tick()
            self.now_ms += MIN

    def _breathe(self) -> None:
        """Workers that are there give their signs: a slow machine takes longer for a night than a lease."""
        for key in self.client.scan_iter(match="*workers:*"):
            seen_ms = self.client.hget(key, "seen_at_ms")
            for field in ("seen_at_ms", "progress_at_ms"):
                self.client.hincrby(key, field, server_now_ms(self.client) - int(seen_ms))

    def told(self) -> dict[str, str]:
        """Severity by rule."""
        payloads = [call.json["payload"] for call in self.receiver.calls if "payload" in call.json]
        return {payload["class"]: payload["severity"] for payload in payloads}

    def waits(self, stream: str, for_s: float) -> None:
        self.client.xadd(stream, {"request": b"x"}, id=f"{server_now_ms(self.client) - int(for_s * 1000)}-1")

    def works(self, kind: str) -> None:
        now_ms = server_now_ms(self.client)
        fields = {"kind": kind, "pid": 1, "seen_at_ms": now_ms, "progress_at_ms": now_ms}
        show_worker(self.client, f"{kind}-host-1", fields)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running() as one:
        yield one


@pytest.fixture
def on_call(real_server: Any, receiver: Receiver) -> OnCall:
    return OnCall(real_server.admin, receiver)


def test_a_total_outage_wakes_somebody_up_within_three_minutes(on_call: OnCall) -> None:
    """Requests wait for a minute when the judge looks; at its next look it is sure."""
    for kind in ("amn", "fallback", "shadow"):
        on_call.works(kind)
    on_call.minutes(5)
    assert on_call.told() == {}
    for key in on_call.client.scan_iter(match="*workers:*"):
        on_call.client.delete(key)
    on_call.waits(KEYS.requests, 61)
    on_call.minutes(1)
    assert on_call.told() == {}
    on_call.minutes(1)
    assert on_call.told() == {"no_worker": "critical"}
    [call] = on_call.receiver.calls
    told = call.json["payload"]
    assert told["summary"].startswith(
        "no_worker, on queue main of prod: no amn worker lives, and the oldest of what waits for one is 6"
    )
    file, _, heading = told["custom_details"]["runbook"].partition("#")
    assert f"\n## {heading}\n" in Path(urlsplit(file).path).read_text("utf-8")


def test_workers_that_hang_are_no_workers(on_call: OnCall) -> None:
    on_call.works("amn")
    on_call.client.hincrby(KEYS.worker("amn-host-1"), "progress_at_ms", -60_000)
    on_call.waits(KEYS.high, 130)
    on_call.minutes(2)
    assert on_call.told() == {"no_worker": "critical", "backlog_age": "critical"}


@pytest.mark.parametrize("stream", [KEYS.fallback, KEYS.secondary])
def test_escalated_requests_that_wait_for_nobody_are_a_page(on_call: OnCall, stream: str) -> None:
    on_call.works("amn")
    on_call.waits(stream, 70)
    on_call.minutes(2)
    assert on_call.told() == {"no_worker": "critical"}


def test_a_request_that_goes_from_worker_to_worker_is_a_page(on_call: OnCall) -> None:
    on_call.works("amn")
    on_call.waits(KEYS.requests, 130)
    on_call.client.xreadgroup(GROUP, "w", {KEYS.requests: ">"})
    on_call.minutes(2)
    assert on_call.told() == {"backlog_age": "critical"}


def test_an_idle_night_a_first_start_and_a_restart_wake_nobody(on_call: OnCall) -> None:
    on_call.minutes(5)  # the first start: no worker yet, and no request
    on_call.works("amn")
    on_call.client.hset(KEYS.stats, mapping={"accepted:normal": 5, "answered": 5})
    on_call.minutes(120)
    on_call.client.delete(KEYS.worker("amn-host-1"))  # between two workers, with something waiting
    on_call.waits(KEYS.requests, 5)
    on_call.minutes(1)
    on_call.client.delete(KEYS.requests)
    on_call.client.hset(KEYS.stats, "cancelled", 0)
    on_call.works("amn")
    on_call.minutes(60)
    assert on_call.told() == {}


def test_a_planned_drain_without_traffic_is_a_ticket_at_most(on_call: OnCall) -> None:
    on_call.client.hset(KEYS.stats, mapping={"accepted:normal": 5, "answered": 5})
    on_call.minutes(9)
    assert on_call.told() == {}
    on_call.minutes(2)
    assert on_call.told() == {"no_worker": "warning"}


def test_work_for_which_nobody_waits_may_wait_for_an_hour(on_call: OnCall) -> None:
    on_call.works("amn")
    on_call.waits(KEYS.low, 3_500)
    on_call.minutes(5)
    assert on_call.told() == {}
    on_call.client.delete(KEYS.low)
    on_call.waits(KEYS.low, 3_700)
    on_call.minutes(2)
    assert on_call.told() == {"backlog_age": "warning"}


def test_a_full_queue_and_its_refusals_are_pages(
    on_call: OnCall, real_server: Any, contexts: Callable[..., NDArray[np.float32]]
) -> None:
    on_call.works("amn")
    on_call.minutes(6)
    with Producer(settings=ProducerSettings(url=real_server.url, entries_max=10, retry_ms=0)) as producer:
        for _ in range(12):
            with pytest.raises(QueueFull):
                producer.submit_many(contexts(20))
    on_call.minutes(1)
    assert on_call.told() == {"refused": "critical"}


def test_a_queue_near_its_limits_is_a_page(on_call: OnCall) -> None:
    on_call.works("amn")
    on_call.client.xadd(KEYS.requests, {"request": b"x"})
    on_call.client.set(KEYS.requests_bytes, int(0.85 * 2 * 1024**3))
    on_call.minutes(2)
    assert on_call.told() == {"backlog_size": "critical"}


@pytest.mark.parametrize(("deaths", "severity"), [(5, "warning"), (20, "critical")])
def test_workers_that_die_again_and_again_are_told(on_call: OnCall, deaths: int, severity: str) -> None:
    on_call.works("amn")
    on_call.minutes(6)
    on_call.client.hincrby(KEYS.stats, "worker_died:amn", deaths)
    on_call.minutes(1)
    assert on_call.told() == {"crash_loop": severity}


@pytest.mark.parametrize(("letters", "severity"), [(21, "warning"), (600, "critical")])
def test_dead_letters_that_grow_are_told(on_call: OnCall, letters: int, severity: str) -> None:
    on_call.works("amn")
    on_call.minutes(6)
    on_call.client.hset(KEYS.stats, mapping={"accepted:normal": letters, "dead": letters})
    on_call.minutes(1)
    assert on_call.told() == {"dead_letters": severity}


def test_requests_that_vanish_are_told(
    on_call: OnCall, real_server: Any, contexts: Callable[..., NDArray[np.float32]]
) -> None:
    on_call.works("amn")
    on_call.minutes(6)
    with Producer(settings=ProducerSettings(url=real_server.url)) as producer:
        producer.submit_many(contexts(3))
        on_call.minutes(6)
        assert on_call.told() == {}  # they wait
        on_call.client.xtrim(KEYS.requests, maxlen=0, approximate=False)
        on_call.minutes(2)
    assert on_call.told() == {"unanswered": "warning"}
    assert "3 requests" in on_call.receiver.calls[0].json["payload"]["summary"]


def test_memory_near_its_limit_is_a_page(make_server: Any, receiver: Receiver) -> None:
    client = make_server().client()
    on_call = OnCall(client, receiver)
    on_call.works("amn")
    client.set("ballast", bytes(64 * 1024**2))  # six in a hundred are left for the judge to write in
    give_up_at_s = time.monotonic() + 10
    while client.info("memory")["used_memory"] > 100 * 1024**2:  # the connection's buffer holds it, too
        assert time.monotonic() < give_up_at_s
        time.sleep(0.05)
    on_call.minutes(1)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.94))
    on_call.minutes(3)
    assert on_call.told()["server_memory"] == "critical"


def test_a_server_that_cannot_write_its_files_is_a_page(
    make_server: Any, receiver: Receiver, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    client = make_server(arguments=("--dir", str(folder))).client()
    on_call = OnCall(client, receiver)
    on_call.works("amn")
    shutil.rmtree(folder)
    client.bgsave()
    give_up_at_s = time.monotonic() + 10
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < give_up_at_s
        time.sleep(0.05)
    on_call.minutes(2)
    assert on_call.told() == {"persistence_failed": "critical"}


def _killed(server: Any) -> None:
    server.kill()


def _without_memory(server: Any) -> None:
    server.client().config_set("maxmemory", 1)


def _without_files(server: Any) -> None:
    client = server.client()
    shutil.rmtree(client.config_get("dir")["dir"])
    client.bgsave()
    give_up_at_s = time.monotonic() + 10
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < give_up_at_s
        time.sleep(0.05)


def _repaired(server: Any) -> None:
    if server._process.poll() is not None:
        server.start()
    server.client().config_set("maxmemory", 0)
    server.client().config_set("save", "")


@pytest.mark.parametrize("fault", [_killed, _without_memory, _without_files])
def test_a_server_that_does_nothing_any_more_is_told_without_it(
    fault: Callable[[Any], None],
    make_server: Any,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge and the receipts need it; the sender alone is left, and notices when it looks anew."""
    monkeypatch.setattr("ops.alerts.sender._EVERY_MS", 1_000)
    folder = tmp_path / "files"
    folder.mkdir()
    server = make_server(arguments=("--dir", str(folder)))
    server.client().config_set("save", "3600 1")
    sink = PagerDuty(name="pager", routing_key=Secret("k" * 32), url=receiver.url + "/v2/enqueue")
    config = AlertsConfig(settings=AlertSettings(server_silent_ms=1_000), sinks={"pager": sink})
    sinks, stopping = Sinks(lambda: config), threading.Event()
    client = connect(ProducerSettings(url=server.url), retries=0)
    sender = Sender(client, KEYS, sinks)
    thread = threading.Thread(target=sender.run, args=(stopping, server.url, Pulse(ends_itself=False)))
    thread.start()
    try:
        give_up_at_s = time.monotonic() + 10
        while not client.exists(KEYS.alerts_prefix + "looked_ms"):
            assert time.monotonic() < give_up_at_s
            time.sleep(0.05)
        fault(server)
        calls = wait_for(receiver, 1)
        assert calls[0]["event_action"] == "trigger"
        assert calls[0]["payload"]["class"] == "server_down"
        assert calls[0]["payload"]["severity"] == "critical"
        _repaired(server)
        calls = wait_for(receiver, 2)
        assert [call["event_action"] for call in calls] == ["trigger", "resolve"]
        assert calls[0]["dedup_key"] == calls[1]["dedup_key"]
    finally:
        stopping.set()
        thread.join()


def test_the_secondary_sinks_hear_of_the_server_when_no_primary_one_takes_it(receiver: Receiver) -> None:
    with running() as second:
        first = PagerDuty(name="a", routing_key=Secret("k" * 32), url=receiver.url)
        other = PagerDuty(name="b", routing_key=Secret("k" * 32), url=second.url, secondary=True)
        settings = AlertSettings(server_silent_ms=0)
        for answer, told in ((202, 0), (400, 1), (503, 1)):
            receiver.answers = [answer]
            config = AlertsConfig(settings=settings, sinks={"a": first, "b": other})
            ServerDown("main", Sinks(lambda config=config: config)).failed("gone")
            assert len(second.calls) == told
            second.calls.clear()


def wait_for(receiver: Receiver, count: int) -> list[Any]:
    give_up_at_s = time.monotonic() + 30
    while len(receiver.calls) < count:
        assert time.monotonic() < give_up_at_s
        time.sleep(0.05)
    return [call.json for call in receiver.calls]
