"""What a request costs the server: a fixed set of commands, however many wait or are leased."""

from __future__ import annotations

import threading
from typing import Any

from echo import EchoWorker
from rig import KEYS, Rig

from producer import Options, Producer
from producer.keys import GROUP
from producer.messages import PRIORITIES
from producer.transport.connection import script_text
from producer.transport.link import Link
from workers.engine.entry import Entry, Outcome
from workers.engine.queue import LeasedQueue

#: Commands of producer and worker whose cost does not depend on how much the server holds (or on its
#: logarithm), and what bounds the others: the arguments that they must come with.
CONSTANT = {
    *("evalsha", "eval", "script|load", "multi", "exec", "ping", "hello", "client|setinfo"),
    *("hset", "pttl"),  # what the keeper says of the streams, once a second
    "time",  # once a micro-batch, inside the finish
    *("xadd", "xlen", "xack", "xdel", "get", "set", "del", "incrby", "decrby", "hincrby", "pexpire"),
}
BOUNDED = {
    "xread": lambda words: "COUNT" in words,
    "xreadgroup": lambda words: "COUNT" in words,
    "xautoclaim": lambda words: "COUNT" in words,
    "xrange": lambda words: words[1] == words[2] or words[-2:] == ["COUNT", "1"],  # one entry
    "xrevrange": lambda words: words[-2:] == ["COUNT", "1"],
    "xpending": lambda words: words[2] == words[3] or len(words) == 6,  # one entry, or one worker's
}
#: Once per worker, or at its start and end.
RARE = {"xgroup|create", "xgroup|createconsumer", "xgroup|delconsumer", "xinfo|consumers", "exists", "unlink"}


def fill(rig: Rig, count: int) -> None:
    """Puts `count` small entries into each level."""
    for stream in KEYS.levels:
        for first in range(0, count, 1000):
            with rig.admin.pipeline(transaction=False) as pipe:
                for number in range(first, min(first + 1000, count)):
                    pipe.xadd(stream, {"request": b"payload", "id": f"x{number}"})
                pipe.execute()


def calls(rig: Rig) -> dict[str, int]:
    stats: Any = rig.admin.info("commandstats")
    ours = {"config|resetstat", "info"}
    return {
        name.removeprefix("cmdstat_").lower(): row["calls"]
        for name, row in stats.items()
        if name.removeprefix("cmdstat_").lower() not in ours and "client" not in name
    }


def ended(entries: list[Entry], op: str) -> list[Outcome]:
    return [Outcome(entry=entry, op=op, reply_to="client", payload=b"answer") for entry in entries]


def some_work(rig: Rig, queue: LeasedQueue) -> int:
    """Submits, leases and ends requests; returns how many were ended."""
    submit = rig.admin.register_script(script_text("producer", "submit"))
    keys = [*KEYS.levels, *KEYS.counters[:3], KEYS.stats]
    for turn in range(8):
        batch = [word for n in range(32) for word in (f"r{turn}-{n}", 1 + n % 3, "-", b"payload")]
        statuses = submit(keys=keys, args=[10**9, 10**12, 60_000, KEYS.seen_prefix, "client", *batch])
        assert statuses == [1] * 32
    queue._reclaim_at = 0.0
    taken = [queue.lease()] + [queue.lease(block=False) for _ in range(5)]
    for entries, op in zip(taken, ("reply", "escalate", "both", "dead", "reply", "reply"), strict=True):
        assert queue.finish(ended(entries, op)) == [b"ok"] * len(entries)
    return sum(map(len, taken))


def cost(rig: Rig, waiting: int) -> tuple[int, dict[str, int]]:
    rig.admin.flushall()
    queue = rig.queue("w", batch_max=48)
    fill(rig, waiting)
    rig.admin.config_resetstat()
    done = some_work(rig, queue)
    return done, calls(rig)


def test_the_commands_of_a_request_do_not_grow_with_the_queue(real_rig: Rig) -> None:
    cost(real_rig, 200)  # the server knows the scripts now
    few, many = cost(real_rig, 200), cost(real_rig, 20_000)
    assert few == many
    assert few[0] > 200
    assert set(few[1]) <= CONSTANT | set(BOUNDED)


def test_producer_and_worker_use_only_commands_of_bounded_cost(real_server, contexts) -> None:
    """Every command of a run as the server saw it, those of the scripts too."""
    seen: list[list[str]] = []
    with real_server.admin.monitor() as monitor:
        reader = threading.Thread(target=listen, args=(monitor, seen), daemon=True)
        reader.start()
        with EchoWorker(real_server.url), Producer(real_server.url) as producer:
            for priority in PRIORITIES:
                rows, options = contexts(20), Options(priority=priority)
                assert all(handle.result() for handle in producer.submit_many(rows, options=options))
            producer.submit(contexts(1)[0]).cancel()
        real_server.admin.echo("the end")
        reader.join(10)
        assert not reader.is_alive()
    assert len(seen) > 100
    for name, *words in seen:
        known = {name, "|".join([name, *words[:1]]).lower()} & (CONSTANT | RARE)
        assert known or (name in BOUNDED and BOUNDED[name](words)), (name, [word[:40] for word in words[:8]])
    assert {name for name, *_ in seen} >= {"evalsha", "xadd", "xreadgroup", "xpending", "xautoclaim"}


def listen(monitor: Any, seen: list[list[str]]) -> None:
    while True:
        command = monitor.next_command()["command"].split(" ")
        if command[0].lower() == "echo":
            return
        seen.append([command[0].lower(), *command[1:]])


def test_a_look_for_expired_leases_stays_short_however_many_are_leased(rig: Rig) -> None:
    leased, batch_max = 3000, 16
    well, looks = rig.queue("well", batch_max=4096), rig.queue("looks", batch_max=batch_max)
    with rig.admin.pipeline(transaction=False) as pipe:
        for number in range(leased):
            pipe.xadd(KEYS.requests, {"request": b"payload", "id": f"x{number}"})
        pipe.execute()
    while well.lease():
        pass
    assert rig.admin.xpending(KEYS.requests, GROUP)["pending"] == leased
    wanted = range(2, leased, 1000)  # a few whose worker died, here and there
    rows = rig.admin.xpending_range(KEYS.requests, GROUP, "-", "+", leased)
    lost = [rows[n]["message_id"] for n in wanted]
    rig.admin.xclaim(KEYS.requests, GROUP, "died", 0, lost, idle=3_600_000, justid=True)
    found, turns = [], 0
    while not turns or looks._reclaim_from != [b"0-0"] * 3:
        found += looks.lease(block=False)
        turns += 1
        assert turns <= leased
    assert [entry.id for entry in found] == lost
    if rig.kind != "fake":  # which looks at all of them at once
        # The server looks at ten times the batch in one go, so that a look has a most.
        assert turns >= leased // (10 * batch_max)


def test_a_batch_is_two_round_trips_whatever_its_levels(rig: Rig, monkeypatch: Any) -> None:
    queue = rig.queue("w", batch_max=12)
    fill(rig, 30)
    end_of_look = queue.lease()  # the look for expired leases, once a quarter of a lease, is over
    assert queue.finish(ended(end_of_look, "reply")) == [b"ok"] * len(end_of_look)
    sent: list[int] = []
    send = Link.send
    monkeypatch.setattr(Link, "send", lambda link, commands: sent.append(1) or send(link, commands))
    for block in (True, False, False):
        sent.clear()
        entries = queue.lease(block=block)
        queue.finish(ended(entries, "reply"))
        assert (len(sent), len(entries)) == (2, 12)
