"""The page's server side on a real server: true figures, made once for all who watch, at a constant cost."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from rig import KEYS, Rig, answer
from servers import Server
from test_cost import calls, fill, listen

from ops.drift.service import history
from ops.page.feed import Feed
from ops.page.look import Looker
from ops.page.snapshot import Snapshots
from producer import Producer
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors


@contextmanager
def snapshots(url: str) -> Iterator[Snapshots]:
    settings = ProducerSettings(url=url)
    with closing(connect(settings)) as client:
        looker = Looker(client, settings)

        def look() -> Any:
            with driver_errors(url):
                return looker.look()

        yield Snapshots(settings, look)


def made(source: Snapshots) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(source.make())
    return found


def test_the_numbers_of_a_snapshot_are_those_of_the_server(real_rig: Rig, contexts: Any) -> None:
    with snapshots(real_rig.url) as source, Producer(real_rig.url) as producer:
        before = made(source)
        assert before["traffic"]["answered_per_s"] is None
        handles = producer.submit_many(contexts(20))
        queue = real_rig.queue("amn-w", batch_max=64)
        queue.finish([answer(entry) for entry in queue.lease()])
        assert all(handle.result() for handle in handles)
        now = made(source)
        for_s = (now["made_ms"] - before["made_ms"]) / 1000
        assert now["traffic"]["answered_per_s"] == pytest.approx(20 / for_s, rel=0.001)
        assert now["traffic"]["submitted_per_s"] == pytest.approx(20 / for_s, rel=0.001)
        assert now["traffic"]["failed_per_s"] == 0


def test_rows_of_batches_are_among_the_reasons_and_the_hour_is_that_of_the_history(real_rig: Rig) -> None:
    admin, now_ms = real_rig.admin, int(real_rig.admin.time()[0]) * 1000
    for minutes, part in ((30, 0), (1, 40)):
        row = {"at_ms": now_ms - minutes * 60_000, "escalated": part, "decided": 10 * part}
        for command in history.commands(KEYS, row):
            admin.execute_command(*command)
    admin.hset(KEYS.drift_prefix + "judge", "evaluated_at_ms", now_ms)
    with snapshots(real_rig.url) as source:
        before = made(source)
        for name in ("reason:long_context", "batch:reason:long_context", "batch:shed:batch"):
            admin.hincrby(KEYS.stats, name, 10)
        time.sleep(0.05)  # a look that is not later than the last one gives no rate
        now = made(source)
        for_s = (now["made_ms"] - before["made_ms"]) / 1000
        [fired], [shed] = (now["escalation"][name] for name in ("by_reason", "shed_by_reason"))
        assert (fired["reason"], shed["reason"]) == ("long_context", "batch")
        assert fired["per_s"] == pytest.approx(20 / for_s, rel=0.001)
        assert now["escalation"]["hour_rate"] == 0.1
        admin.hset(KEYS.drift_prefix + "judge", "evaluated_at_ms", now_ms - 3_600_000)
        assert made(source)["escalation"]["hour_rate"] is None  # the rows are of another hour


def test_what_waits_dies_and_is_refused_is_seen(real_rig: Rig) -> None:
    rig = real_rig
    with snapshots(rig.url) as source:
        assert made(source)["dead"] == {"count": 0, "grouped": 0, "groups": [], "newest": []}
        rig.put("a", "b", "c")
        queue = rig.queue("amn-w")
        first, *_ = queue.lease()
        queue.finish([answer(first, "dead", reason="poison", message="breaks its worker")])
        rig.admin.hincrby(KEYS.stats, "refused:normal", 7)
        now = made(source)
        [normal] = [one for one in now["streams"] if (one["kind"], one["level"]) == ("amn", "normal")]
        assert (normal["entries"], normal["leased"]) == (2, 2)
        [group], [letter] = now["dead"]["groups"], now["dead"]["newest"]
        assert (now["dead"]["count"], group["reason"], group["kind"], group["count"]) == (
            1,
            "poison",
            "amn",
            1,
        )
        assert letter["message"] == "breaks its worker"
        assert now["verdict"]["state"] == "broken"
        assert {"refused", "dead letters", "amn workers"} <= {one["check"] for one in now["findings"]}
        assert {one["name"]: one["state"] for one in now["workers"]} == {"amn-w": "gone"}


def test_a_snapshot_asks_as_many_commands_whatever_waits_and_died(real_rig: Rig) -> None:
    rig = real_rig
    with snapshots(rig.url) as source:
        costs = []
        for waiting, dead in ((0, 0), (20_000, 10_000)):
            rig.admin.flushall()
            rig.queue("amn-w").lease()
            fill(rig, waiting)
            for _ in range(dead // 1000):
                with rig.admin.pipeline(transaction=False) as pipe:
                    for _ in range(1000):
                        pipe.xadd(KEYS.dead, {"reason": "poison", "request": b"payload"})
                    pipe.execute()
            source.make(), source.make()
            rig.admin.config_resetstat()
            for _ in range(5):
                now = made(source)
            costs.append(calls(rig))
            assert now["dead"]["count"] == dead
            assert sum(one["entries"] for one in now["streams"]) == 3 * waiting
    assert costs[0] == costs[1]
    assert sum(costs[0].values()) < 5 * 120


#: Hashes that a look reads as a whole: bounded by their writers, or by their length, which is asked first.
HASHES = re.compile(
    r"amn:\{main\}:(stats|workers:[\w-]+|stages:minute:\d+|alerts:(states|silences|receipts))"
)
#: Commands of a look that are not constant by themselves, and what bounds each.
BOUNDED = {
    "hgetall": lambda words: bool(HASHES.fullmatch(words[0])),
    "xrange": lambda words: words[-2:] == ["COUNT", "1"] or words[0].endswith("alerts:ended"),  # capped
    "xrevrange": lambda words: words[-2] == "COUNT",
    "xpending": lambda words: len(words) == 2 or words[-1] == "1000",
    "lrange": lambda words: int(words[2]) < 20 or words[0].endswith("failures"),  # twenty at most
    "zrevrange": lambda words: int(words[2]) < 20,
    "smembers": lambda words: words[0] == "rq:workers:amn-jobs",
    "hvals": lambda words: "exemplars" in words[0],  # capped by their writer, read once a minute
}
CONSTANT = {
    *(
        "evalsha",
        "eval",
        "script|load",
        "multi",
        "exec",
        "time",
        "info",
        "hlen",
        "hget",
        "hstrlen",
        "hexists",
    ),
    *("xlen", "get", "mget", "llen", "pttl", "exists", "xinfo|consumers", "hmget", "client|setinfo", "hello"),
}


def test_a_look_scans_nothing_and_reads_nothing_without_a_bound(real_rig: Rig) -> None:
    rig, seen = real_rig, list[list[str]]()
    rig.queue("amn-w").lease()
    fill(rig, 500)
    rig.admin.xadd(KEYS.dead, {"reason": "poison", "request": b"payload"})
    with snapshots(rig.url) as source, rig.admin.monitor() as monitor:
        reader = threading.Thread(target=listen, args=(monitor, seen), daemon=True)
        reader.start()
        for _ in range(2):
            assert made(source)["reachable"]
        rig.admin.echo("the end")
        reader.join(10)
    assert len(seen) > 40
    for name, *words in seen:
        known = {name, "|".join([name, *words[:1]]).lower()} & CONSTANT
        assert known or (name in BOUNDED and BOUNDED[name](words)), (name, words[:8])


def test_fifty_viewers_cost_the_server_what_one_does(real_rig: Rig) -> None:
    def cost(viewers: int) -> int:
        with snapshots(real_rig.url) as source:
            made_ones: list[int] = []
            seen: list[int] = []

            def make() -> bytes:
                made_ones.append(1)
                return source.make()

            async def view(feed: Feed) -> None:
                async for body in feed.follow():
                    seen.append(json.loads(body)["made_ms"])
                    if len(made_ones) >= 3:
                        return

            async def watch() -> None:
                feed = Feed(make)
                await asyncio.gather(*(view(feed) for _ in range(viewers)))
                before = len(made_ones)
                await asyncio.sleep(1.5)  # with no viewer nothing is made
                assert len(made_ones) <= before + 1

            real_rig.admin.config_resetstat()
            asyncio.run(watch())
            assert len(seen) == 3 * viewers
            assert len(made_ones) in (3, 4)
            return round(sum(calls(real_rig).values()) / len(made_ones))

    assert cost(1) == pytest.approx(cost(50), abs=5)


def test_a_server_that_is_away_is_said_with_since_when_and_recovers() -> None:
    server = Server("valkey").start()
    try:
        with snapshots(server.url) as source:
            assert made(source)["reachable"]
            server.kill()
            away, later = made(source), made(source)
            assert not away["reachable"]
            assert away["verdict"]["state"] == "unknown"
            assert "cannot be reached" in away["verdict"]["sentence"]
            assert later["verdict"]["since_ms"] == away["verdict"]["since_ms"]
            server.start()
            assert made(source)["reachable"]
    finally:
        server.close()
