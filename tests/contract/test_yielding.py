"""What live requests find before them of low work, on every server, by rows and not by times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rig import KEYS, Rig
from test_batches import Bank, batch_request

from amn.policy import load_policy
from producer.errors import ServerUnavailable
from producer.protocol import wire
from workers.engine.loop import Loop
from workers.engine.microbatch import PORTION_ROWS
from workers.engine.yielding import BESIDE_ROWS_MAX, PIECE_ROWS, ROWS_MAX
from workers.handlers.amn import AmnHandler, Gate

Contexts = Callable[..., Any]


class Watched:
    """Repeats a vector of each context, counts the rows, and calls back before each piece of low work."""

    name, model_id, bank = "amn", "amn@0", Bank()

    def __init__(self, on_low: Callable[[], None] = lambda: None) -> None:
        self.low_rows, self._on_low = 0, on_low
        self.calls: list[int] = []

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        if len(contexts) > 1:
            self._on_low()
            self.low_rows += len(contexts)
        self.calls.append(len(contexts))
        return np.ascontiguousarray(contexts[:, -1])


def loop_of(rig: Rig, model: Watched) -> Loop:
    queue = rig.queue("w")
    return Loop(queue, AmnHandler(model, Gate(policy=load_policy("card")), queue.settings))  # type: ignore[arg-type]


def put_low(rig: Rig, name: str, rows: Any) -> None:
    rig.put_bytes(batch_request(name, rows, priority="low"), level=2)


def answered(rig: Rig) -> list[str]:
    return [reply.id for reply in rig.replies()]


def test_a_live_request_has_few_rows_of_low_work_before_it(rig: Rig, contexts: Contexts) -> None:
    put_at: dict[str, int] = {}
    waited: dict[str, int] = {}

    def live_request() -> None:
        note_answers()
        name = f"live-{len(put_at)}"
        put_at[name] = model.low_rows
        rig.put(name)

    def note_answers() -> None:
        for name in answered(rig):
            if name in put_at:
                waited.setdefault(name, model.low_rows - put_at[name])

    model = Watched(live_request)
    loop = loop_of(rig, model)
    rig.put("first")
    loop._turn()
    put_low(rig, "file", contexts(250))
    while "file" not in answered(rig):
        loop._turn()
    note_answers()
    assert model.low_rows == 250
    assert len(waited) == -(-250 // PIECE_ROWS)
    assert max(waited.values()) <= PIECE_ROWS
    assert loop.finished == len(waited) + 2
    assert rig.bytes_left() == [0] * 5


def test_low_work_gets_on_under_steady_live_traffic(rig: Rig, contexts: Contexts) -> None:
    model = Watched()
    loop = loop_of(rig, model)
    for i in range(6):
        put_low(rig, f"file-{i}", contexts(40))
    left, turns, give_up_at_s = {f"file-{i}" for i in range(6)}, 0, time.monotonic() + 20
    while left and time.monotonic() < give_up_at_s:
        rig.put(f"live-{turns}")
        loop._turn()
        turns += 1
        left -= set(answered(rig))
    assert not left
    assert {f"live-{i}" for i in range(turns - 1)} <= set(answered(rig))


def test_without_live_traffic_low_work_is_computed_at_once(rig: Rig, contexts: Contexts) -> None:
    model = Watched()
    loop = loop_of(rig, model)
    put_low(rig, "file", contexts(250))
    loop._turn()
    assert model.calls == [250]


@pytest.mark.parametrize("live", [False, True])
def test_a_read_of_low_messages_is_bounded_in_rows(rig: Rig, contexts: Contexts, live: bool) -> None:
    queue = rig.queue("reader")
    put_low(rig, "small", contexts(20))
    assert len(queue.lease()) == 1  # now it knows how large they are
    if live:
        rig.put("first")
        assert len(queue.lease()) == 1
    for i in range(40):
        put_low(rig, f"file-{i}", contexts(20))
    read: list[int] = []
    give_up_at_s = time.monotonic() + 20
    while sum(read) < 800 and time.monotonic() < give_up_at_s:
        if live:
            rig.put(f"live-{len(read)}")
        rows = [wire.decode_request(e.fields[b"request"], batches=True).count for e in queue.lease()]
        read.append(sum(row for row in rows if row > 1))
    assert sum(read) == 800
    assert 20 <= max(read) <= (BESIDE_ROWS_MAX if live else ROWS_MAX)


def test_a_server_that_goes_away_between_two_pieces_costs_nobody_an_answer(
    rig: Rig, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Watched(lambda: rig.put("live") if not model.low_rows else None)
    loop = loop_of(rig, model)
    rig.put("first")
    loop._turn()
    put_low(rig, "file", contexts(100))

    def gone() -> None:
        raise ServerUnavailable("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(loop.queue, "lease_live", gone)
        loop._turn()
    assert set(answered(rig)) == {"first", "file"}
    assert loop._rejoins
    loop._rejoin()
    loop._turn()
    assert set(answered(rig)) == {"first", "file", "live"}


def test_micro_batches_stay_bounded_while_live_requests_are_served_between(
    rig: Rig, contexts: Contexts
) -> None:
    computed: list[int] = []
    model = Watched(lambda: rig.put(f"live-{model.low_rows}"))
    loop = loop_of(rig, model)
    handle = loop._handler.handle

    def noted(batch: Any) -> Any:
        computed.append(len(batch.contexts))
        return handle(batch)

    loop._handler.handle = noted  # type: ignore[method-assign]
    for i in range(24):
        put_low(rig, f"file-{i}", contexts(64))
    rig.put("first")
    give_up_at_s = time.monotonic() + 30
    while rig.admin.xlen(KEYS.levels[2]) and time.monotonic() < give_up_at_s:
        loop._turn()
    assert sum(count for count in computed if count > 1) >= 24 * 64
    assert max(computed) <= PORTION_ROWS


def test_large_live_requests_that_come_between_are_computed_in_bounded_micro_batches(
    rig: Rig, contexts: Contexts
) -> None:
    computed: list[int] = []

    def live() -> None:
        if not model.low_rows:
            for i in range(3):
                rig.put_bytes(batch_request(f"large-{i}", contexts(250)))

    model = Watched(live)
    loop = loop_of(rig, model)
    handle = loop._handler.handle

    def noted(batch: Any) -> Any:
        computed.append(len(batch.contexts))
        return handle(batch)

    loop._handler.handle = noted  # type: ignore[method-assign]
    rig.put("first")
    loop._turn()
    put_low(rig, "file", contexts(100))
    loop._turn()
    assert sorted(set(answered(rig))) == ["file", "first", "large-0", "large-1", "large-2"]
    assert max(computed) <= PORTION_ROWS


def test_a_fault_beside_live_requests_is_not_blamed_on_low_work(rig: Rig, contexts: Contexts) -> None:
    model = Watched(lambda: rig.put("live") if not model.low_rows else None)
    loop = loop_of(rig, model)
    rig.put("first")
    loop._turn()
    put_low(rig, "file", contexts(100))

    def fails(*_: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    loop._hear.append(fails)
    with pytest.raises(ZeroDivisionError):
        loop._turn()
    assert rig.admin.xlen(KEYS.dead) == 0
    assert not [reply for reply in rig.replies() if reply.id == "file"]
    assert [entry.place for entry in loop.in_hand if entry.place != 3] == []
