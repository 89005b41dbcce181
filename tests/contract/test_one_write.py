"""The end of the last entries at hand and the wait for the next ones leave in one write."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ResponseError
from rig import KEYS, Rig, answer

from producer.errors import ServerError
from producer.keys import GROUP
from workers.engine.entry import Entry, Outcome
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch


class Ends:
    """Ends each request in one way."""

    def __init__(self, op: str = "reply") -> None:
        self._op = op

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        return [answer(entry, self._op) for entry in batch.entries]


def begun(rig: Rig, op: str = "reply", behind: str = "b", **limits: int) -> tuple[Loop, list[Entry]]:
    """A loop that has leased the request `a`, and behind it the request `b` waits."""
    loop = Loop(rig.queue("w", **limits), Ends(op))
    loop.queue._writes.load(loop.queue._finish)
    rig.put("a")
    entries = loop.queue.lease()
    if behind:
        rig.put(behind)
    return loop, entries


class Watched:
    """Notes the writes of a queue by connection, and what its loop says when one has left."""

    def __init__(self, loop: Loop, monkeypatch: Any) -> None:
        self.writes: list[str] = []
        self.said: list[tuple[list[Entry], bool, int]] = []
        for name in ("_reading", "_writes"):
            link = getattr(loop.queue, name)

            def send(commands: Sequence[Any], name: str = name, real: Any = link.send) -> None:
                self.writes.append(name)
                real(commands)

            monkeypatch.setattr(link, "send", send)
        taken = loop.queue._taken

        def waiting(read: Any) -> list[Entry]:
            self.said.append((loop.in_hand, loop.busy, loop.finished))
            return taken(read)

        monkeypatch.setattr(loop.queue, "_taken", waiting)


def test_a_lone_request_is_ended_and_the_next_one_read_in_one_write(rig: Rig, monkeypatch: Any) -> None:
    loop, entries = begun(rig)
    watched = Watched(loop, monkeypatch)
    entries = loop.step(entries)
    assert watched.writes == ["_reading"]
    assert (loop.finished, [reply.id for reply in rig.replies()]) == (1, ["a"])
    assert len(entries) == 1
    assert loop.step(entries) == []  # nothing more came while it waited
    assert (loop.finished, [reply.id for reply in rig.replies()]) == (2, ["a", "b"])
    assert not loop.busy


def test_who_waits_for_the_next_ones_holds_nothing_and_is_not_busy(rig: Rig, monkeypatch: Any) -> None:
    loop, entries = begun(rig)
    watched = Watched(loop, monkeypatch)
    loop.step(entries)
    assert watched.said == [([], False, 1)]


@pytest.mark.parametrize("answers", [0, 1])
def test_an_end_whose_connection_broke_is_made_once(rig: Rig, monkeypatch: Any, answers: int) -> None:
    """Before the answer to the end came, and between that and the answer to the read."""
    loop, entries = begun(rig)
    link = loop.queue._reading
    with monkeypatch.context() as broken:
        real, came = link.read, [b""] * answers

        def read(count: int) -> list[Any]:
            if came:
                return real(len([came.pop()]))
            link._connection.disconnect()
            return real(count)

        broken.setattr(link, "read", read)
        with pytest.raises(ServerError):
            loop.step(entries)
    assert [reply.id for reply in rig.replies()] == ["a"]
    loop.queue.rejoin()  # as the loop does then: what the lost read took is handed back
    entries = loop.queue.lease()
    while entries:
        entries = loop.step(entries)
    assert [reply.id for reply in rig.replies()] == ["a", "b"]
    assert rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 0


def test_a_script_that_the_server_forgot_is_sent_beside_the_read(rig: Rig) -> None:
    loop, entries = begun(rig)
    rig.admin.script_flush()
    entries = loop.step(entries)
    assert ([reply.id for reply in rig.replies()], len(entries)) == (["a"], 1)


def test_what_the_next_stream_has_no_room_for_is_answered_before_the_wait(rig: Rig) -> None:
    loop, entries = begun(rig, "both", fallback_entries_max=0)
    waits = loop.step(entries)
    assert [(reply.id, reply.shed) for reply in rig.replies()] == [("a", "fallback_full")]
    assert len(waits) == 1


@pytest.mark.parametrize("limits", [{"linger_ms": 5}, {"batch_max": 3}])
def test_who_has_something_to_do_before_the_next_read_does_not_wait_for_it(
    rig: Rig, monkeypatch: Any, limits: dict[str, int]
) -> None:
    """One that lingers, and one whose read may have left something behind."""
    loop, entries = begun(rig, **limits)
    watched = Watched(loop, monkeypatch)
    entries = loop.step(entries)
    loop._join()
    assert "_writes" in watched.writes
    assert [reply.id for reply in rig.replies()] == ["a"]


def test_who_is_refused_an_end_gets_nothing_more_until_it_is_made(real_rig: Rig, monkeypatch: Any) -> None:
    """It would not be in hand, and others would take it over meanwhile."""
    rig = real_rig
    loop, entries = begun(rig, behind="")
    reading, ends, given = loop.queue._reading, loop.queue._writes.run_words, list[int]()
    refusal = ResponseError("MISCONF no disk")
    monkeypatch.setattr(reading, "read", lambda count: reading.__class__.read(reading, count) and [refusal])

    def end(script: Any, words: Any) -> Any:
        if not given:
            rig.put("c")
        given.append(rig.admin.xpending(KEYS.requests, GROUP)["pending"])
        if len(given) < 4:
            raise refusal
        return ends(script, words)

    monkeypatch.setattr(loop.queue._writes, "run_words", end)
    with pytest.raises(ServerError):
        loop.step(entries)
    assert given == [0] * 4
    monkeypatch.undo()
    loop.queue.rejoin()
    assert [entry.deliveries for entry in loop.queue.lease()] == [1]


def test_a_stop_while_the_end_is_made_leases_nothing_more(real_rig: Rig) -> None:
    rig = real_rig
    loop = Loop(rig.queue("w"), Ends())
    later = threading.Timer(0.02, rig.put, ["b"])
    loop._hear.append(lambda *_: (loop.stop(), later.start()))
    rig.put("a")
    loop.run()
    assert loop.finished == 1
    later.join()
    assert rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 0
    assert loop.queue.release() == 0


def test_a_connection_that_died_at_rest_is_found_before_somebody_waits_for_an_end(real_rig: Rig) -> None:
    queue = real_rig.queue("w")
    queue.lease()  # looks for expired leases first
    real_rig.admin.client_kill_filter(_id=queue._writes.call("CLIENT", "ID"))
    queue._reclaim_at = 0.0
    with pytest.raises(ServerError):
        queue.lease()
    queue.rejoin()
    real_rig.put("a")
    assert queue.finish([answer(entry) for entry in queue.lease()]) == [b"ok"]
