"""Entries that may have ended their worker: how few go with one, and what the loop renews meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from producer.errors import AuthenticationFailed, ServerError, ServerUnavailable
from producer.messages import Failure, Reply, Request
from producer.protocol import wire
from producer.protocol.peek import Envelope, envelope
from producer.transport.clock import ServerClock
from producer.transport.steps import Steps
from workers.engine.entry import Entry, Outcome
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.outcomes import begun_too_often
from workers.engine.sizes import ReadSizes
from workers.engine.suspects import PAUSE_S, HeldBack, suspects
from workers.engine.watchdog import Watchdog
from workers.settings import QueueSettings, WorkerSettings

SETTINGS = WorkerSettings(kind="amn", queue=QueueSettings(batch_max=32, stall_ms=20_000))


def entry(number: int, deliveries: int = 1, payload: bytes = b"") -> Entry:
    return Entry(b"%d-0" % number, {b"request": payload}, deliveries)


def test_suspects_come_in_small_groups_then_alone_and_the_worst_last() -> None:
    entries = [entry(n, 2 if n % 3 else 2 + n // 3) for n in range(1, 13)]
    groups = [[(one.id, one.deliveries) for one in group] for group in suspects(entries, 32)]
    assert [len(group) for group in groups] == [4, 4, 1, 1, 1, 1]
    assert {deliveries for group in groups[:2] for _, deliveries in group} == {2}
    assert [group[0][1] for group in groups[2:]] == [3, 4, 5, 6]
    assert [len(group) for group in suspects([entry(n, 2) for n in range(5)], 1)] == [1] * 5


def test_each_next_try_of_an_entry_that_killed_alone_waits_for_longer() -> None:
    held = HeldBack(2, 5)
    entries = [entry(n, deliveries) for n, deliveries in enumerate((2, 3, 5, 4, 6))]
    assert [one.deliveries for one in held.sift(entries, 100.0)] == [2, 3, 6]
    assert [one.deliveries for one in held.entries] == [4, 5]
    assert not held.is_due(100.0 + PAUSE_S - 1)
    assert held.is_due(100.0 + PAUSE_S)
    assert [one.deliveries for one in held.take()] == [4]
    assert not held.is_due(100.0 + 2 * PAUSE_S - 1)
    assert [one.deliveries for one in held.sift([entry(9, 4), entry(10, 4)], 101.0)] == [4]  # no more room
    held.clear()
    assert (held.entries, held.is_due(1e9)) == ([], False)
    # A connection that breaks again and again puts their next try off no further.
    assert [one.deliveries for one in held.sift(entries, 100.0 + PAUSE_S)] == [2, 3, 6]
    assert held.is_due(100.0 + PAUSE_S)


def test_entries_of_one_moment_and_two_levels_are_held_back_together() -> None:
    """Entries that one call appends to two streams have the same id."""
    held = HeldBack(2, 5)
    twins = [Entry(b"1-0", {b"request": b"%d" % place}, 4, place) for place in (1, 2)]
    assert held.sift(twins, 100.0) == []
    assert held.entries == twins


def test_fresh_work_is_done_while_a_suspect_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    books, now_s = Books(), [100.0]
    loop = made(books)
    monkeypatch.setattr("workers.engine.loop.time.monotonic", lambda: now_s[0])
    killer = entry(1, 4)
    assert loop.step([killer]) == []
    assert (books.done, loop.in_hand) == ([], [killer, killer])
    loop.step([entry(2)])
    assert books.done == [("handle", [b"2-0"]), ("finish", [b"2-0"])]
    assert killer in loop.in_hand
    now_s[0] += PAUSE_S
    assert loop._held.is_due(now_s[0])
    loop._begin(loop._held.take())
    assert books.done[-3:] == [(verb, [b"1-0"]) for verb in ("begin", "handle", "finish")]


class Books:
    """A queue that notes the order of what the loop asks it for; `refusals` come first."""

    name = "amn-test"
    heavy = more = low = asked = False
    kept: Sequence[Entry] = ()
    settings = SETTINGS
    clock = ServerClock()

    def __init__(self, refusals: Sequence[Exception] = (), culprit: bytes = b"") -> None:
        self.done: list[tuple[str, list[bytes]]] = []
        self.in_hand: list[list[bytes]] = []
        self.loop: Loop | None = None
        self._refusals = list(refusals)
        self._culprit = culprit

    def begin(self, entries: Sequence[Entry]) -> list[Entry]:
        assert self.loop is not None
        self.in_hand.append([one.id for one in self.loop.in_hand])
        self.done.append(("begin", [one.id for one in entries]))
        return list(entries)

    def unask(self) -> None:
        """Nothing was asked for."""

    def finish(self, outcomes: Sequence[Outcome], *, then_lease: bool = False) -> list[bytes]:
        ids = [outcome.entry.id for outcome in outcomes]
        if self._refusals:
            raise self._refusals.pop(0)
        if self._culprit in ids:
            raise ServerError("the server answered 'ERR'")
        self.done.append(("finish", ids))
        return [b"ok"] * len(outcomes)


def made(books: Books) -> Loop:
    """A loop over it that computes nothing."""

    class Handler:
        def handle(self, batch: MicroBatch) -> list[Outcome]:
            books.done.append(("handle", [one.id for one in batch.entries]))
            return [Outcome(entry=one, op="reply") for one in batch.entries]

    def assemble(entries: Sequence[Entry], *_: Any) -> MicroBatch:
        return MicroBatch(list(entries), [None] * len(entries), None, 0.0, 0.0)  # type: ignore[list-item, arg-type]

    books.loop = Loop(books, Handler(), assemble)  # type: ignore[arg-type]
    books.loop._stopping.wait = lambda _: False  # type: ignore[assignment, method-assign]
    return books.loop


def test_each_group_of_suspects_is_counted_before_and_ended_after_it_is_computed() -> None:
    books = Books()
    entries = [entry(n, 2) for n in range(6)]
    ids = [one.id for one in entries]
    assert made(books).step(entries) == []
    verbs = ("begin", "handle", "finish")
    assert books.done == [(verb, part) for part in (ids[:4], ids[4:]) for verb in verbs]
    assert books.in_hand == [ids, ids]  # all of them stay ours meanwhile


@pytest.mark.parametrize("refusal", [ServerUnavailable("away"), AuthenticationFailed("NOPERM")])
def test_what_was_computed_waits_for_a_server_that_does_not_let_us_in(refusal: Exception) -> None:
    books = Books([refusal] * 50)
    loop = made(books)
    assert loop.step([entry(1), entry(2)]) == []
    assert [one for verb, ids in books.done if verb == "finish" for one in ids] == [b"1-0", b"2-0"]
    assert (loop.finished, loop.given_up) == (2, 0)
    assert loop.progress > 50


def test_an_entry_that_cannot_be_ended_keeps_nobody_but_itself() -> None:
    books = Books(culprit=b"5-0")
    loop = made(books)
    loop.step([entry(n) for n in range(8)])
    ended = {one for verb, ids in books.done if verb == "finish" for one in ids}
    assert ended == {b"%d-0" % n for n in range(8)} - {b"5-0"}
    assert (loop.finished, loop.given_up) == (7, 1)


def test_who_died_over_a_request_is_told_without_decoding_it(contexts: Any) -> None:
    for client in ("c", "client." + "x" * 40):
        request = Request(id="r" * 40, reply_to=client, context=contexts(1)[0])
        payload = wire.encode_request(request)
        assert envelope(payload) == envelope(payload[:200]) == Envelope(request.id, client)
        assert envelope(payload, b"beside") == Envelope("beside", client)
    for nothing in (b"", b"\xa2id", b"\xa2id\xa1a\xa8reply_to", b"\xa2id\xc0\xa8reply_to\xc0", b"\xff" * 99):
        assert envelope(nothing) is None


def test_an_entry_begun_too_often_has_its_amn_answer_once_and_then_no_answer(contexts: Any) -> None:
    request = Request(id="a", reply_to="client", context=contexts(1)[0])
    fast = Reply(id="a", vector=request.context[0], confidence=0.9, margin=0.1, provisional=True)
    fields = {b"request": wire.encode_request(request), b"answer": wire.encode_reply(fast)}
    once, twice = (begun_too_often(Entry(b"1-0", fields, n), 5) for n in (6, 7))
    answer = wire.decode_reply(once.payload)
    assert isinstance(answer, Reply)
    assert (answer.degraded, answer.provisional) == ("fallback_failed", False)
    assert isinstance(wire.decode_reply(twice.payload), Failure)
    assert {(one.op, one.reason, one.reply_to) for one in (once, twice)} == {
        ("dead", "worker_died", "client")
    }


def test_a_read_that_was_lost_is_tried_smaller_and_grows_again() -> None:
    room = ReadSizes(256, 1)
    found = []
    for _ in range(10):
        room.note_lost()
        found.append((room.entries, room.lost_alone))
    assert [entries for entries, _ in found] == [128, 64, 32, 16, 8, 4, 2, 1, 1, 1]
    assert [alone for _, alone in found] == [False] * 8 + [True] * 2
    room.took([256], [1])
    assert (room.entries, room.lost_alone, room.lost) == (2, False, 10)
    for _ in range(7 + 16):
        room.took([256], [1])
    assert room.entries == 256


def test_a_way_that_loses_large_pieces_is_tried_with_one_seldom() -> None:
    steps, lost = Steps(256), 0
    for _ in range(200):
        if steps.size > 40:
            steps.note_lost(steps.size)
            lost += 1
        else:
            steps.note_came()
    assert steps.size >= 20
    assert lost <= 200 // 16 + 4


class Watched:
    """A loop and its watchdog, on a clock that is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop(Books(), handler=None)  # type: ignore[arg-type]
        self.ended: list[str] = []
        self.starved_s = 0.0
        self.dog = Watchdog(self.loop, 1.0, self.ended.append)
        self._now_s = 100.0
        monkeypatch.setattr("workers.engine.watchdog._starved_s", lambda _: self.starved_s)
        self.dog.check(self._now_s)

    def pass_s(self, seconds: int, *, starved: bool = False) -> list[str]:
        for _ in range(seconds):
            self._now_s += 1.0
            self.starved_s += starved
            self.dog.check(self._now_s)
        return self.ended

    def stop_s(self, seconds: int) -> None:
        self._now_s += seconds


def test_a_loop_without_progress_is_ended_and_one_with_progress_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    for _ in range(10):
        assert watched.pass_s(15) == []
        watched.loop.progress += 1
    assert watched.pass_s(30)[0] == "worker_hangs"


def test_a_loop_over_suspects_is_ended_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.loop.suspecting = True
    assert watched.pass_s(5) == []
    assert watched.pass_s(2)[0] == "worker_hangs"


def test_a_worker_that_was_stopped_or_had_no_core_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.stop_s(3600)
    assert watched.pass_s(10) == []
    assert watched.pass_s(3600, starved=True) == []
    assert watched.pass_s(30)[0] == "worker_hangs"


def test_an_orphan_that_does_not_stop_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.dog._parent_pid = 2**30  # nobody
    for _ in range(9):
        watched.loop.progress += 1
        assert watched.pass_s(1) == []
        assert watched.loop.stopping
    watched.loop.progress += 1
    assert watched.pass_s(2) == ["orphan_does_not_stop"]
