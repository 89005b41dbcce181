"""How low work takes its turns beside live traffic, by a clock of the test."""

from __future__ import annotations

import numpy as np
import pytest

from producer import Windows
from producer.messages import CONTEXT_SHAPE, Request
from producer.protocol.peek import contexts_in
from producer.protocol.wire import RequestEncoder, encode_request
from workers.engine.entry import Entry
from workers.engine.yielding import LIVE_S, PIECE_ROWS, SHARE, Yielding, piecewise

LOW, NORMAL = 3, 2


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def entry(place: int = LOW, rows: int = 1, dtype: str = "f4") -> Entry:
    context = np.zeros((rows, *CONTEXT_SHAPE) if rows > 1 else CONTEXT_SHAPE, dtype)
    payload = encode_request(Request(id="r", reply_to="c", context=context))
    return Entry(b"1-1", {b"request": payload}, 1, place)


def test_low_work_waits_for_nothing_where_there_is_no_live_traffic():
    clock = Clock()
    turns = Yielding(clock)
    for _ in range(100):
        turns.first([entry()])
        clock.now_s += 1.0
        turns.stop()
        assert (turns.pause_ms(), turns.interruptible) == (0, False)


def test_beside_live_traffic_low_work_has_its_share_of_the_time_and_no_more():
    clock = Clock()
    turns, worked_s, began_s = Yielding(clock), 0.0, clock.now_s
    while clock.now_s < began_s + 60:
        turns.note_live()
        if pause_ms := turns.pause_ms():
            clock.now_s += pause_ms / 1000
            continue
        turns.first([entry()])
        assert turns.interruptible
        clock.now_s += 0.008
        worked_s += 0.008
        turns.stop()
    assert worked_s / 60 == pytest.approx(SHARE, rel=0.1)


def test_a_wait_that_lasted_too_long_is_made_up_for():
    clock = Clock()
    turns, worked_s, began_s = Yielding(clock), 0.0, clock.now_s
    while clock.now_s < began_s + 60:
        turns.note_live()
        if turns.pause_ms():
            clock.now_s += 0.1  # as a server that looks at its clock ten times a second
            continue
        turns.first([entry()])
        clock.now_s += 0.001
        worked_s += 0.001
        turns.stop()
    assert worked_s / 60 == pytest.approx(SHARE, rel=0.15)


def test_a_step_of_a_process_that_was_stopped_does_not_starve_low_work():
    clock = Clock()
    turns = Yielding(clock)
    turns.note_live()
    turns.first([entry()])
    clock.now_s += LIVE_S * 0.99
    turns.note_live()
    turns.first([entry()])
    clock.now_s += 3600.0
    turns.note_live()
    turns.stop()
    assert turns.pause_ms() <= 1000 * LIVE_S + 1


def test_live_traffic_ends_by_itself():
    clock = Clock()
    turns = Yielding(clock)
    turns.note_live()
    turns.first([entry()])
    clock.now_s += 0.4
    turns.stop()
    assert 0 < turns.pause_ms() <= 101  # until then, and no longer
    clock.now_s += 0.11
    assert (turns.live, turns.pause_ms()) == (False, 0)


def test_much_low_work_that_came_with_others_is_kept_and_little_goes_along():
    turns = Yielding(Clock())
    live, large = entry(NORMAL), entry(rows=40)
    assert turns.first([live, large]) == [live]
    assert turns.kept == [large]
    turns.kept = []
    little = [live, *(entry() for _ in range(16))]
    assert turns.first(little) == little
    assert not turns.kept


@pytest.mark.parametrize("rows", [2, 37, 130, 256])
def test_the_rows_of_a_message_are_known_before_it_is_decoded(rows):
    assert contexts_in(entry(rows=rows, dtype="f2").fields[b"request"]) == rows
    ends = np.arange(4, rows + 4)
    windows = Windows(vectors=np.zeros((rows + 4, 768), "f2"), ends=ends)
    encoder = RequestEncoder(Request(id="r", reply_to="c", context=np.zeros(CONTEXT_SHAPE, "f4")))
    assert contexts_in(encoder.windowed(windows).encode("r", windows.vectors, 0.0, 0.0)) == rows


def test_what_cannot_be_read_counts_as_many_as_its_bytes_can_hold():
    assert contexts_in(b"\xff" * 307_200) == 200
    assert contexts_in(b"\xff" * 4_000_000) == 256
    assert contexts_in(b"\xa5shape\x93\xcd\xff\xff" + bytes(300_000)) == 256
    assert contexts_in(b"") == contexts_in(b"\xa5shape\x93\x00" + bytes(30_000)) == 1


def test_fewer_messages_are_read_the_more_rows_they_have_and_beside_live_traffic():
    clock = Clock()
    turns = Yielding(clock)
    found = []
    for rows in (1, 16, 32, 256):
        turns.expect(rows)
        clock.now_s += 1
        alone = turns.entries_max(16)
        turns.note_live()
        found.append((alone, turns.entries_max(16)))
    assert found == [(256, 64), (16, 4), (8, 2), (1, 1)]
    clock.now_s += 10.0
    assert turns.entries_max(16) == 256


def test_pieces_are_all_rows_in_order_with_a_look_after_each():
    looks: list[int] = []
    numbers = np.arange(3 * PIECE_ROWS - 5)
    lengths: list[int] = []

    def doubled(rows: np.ndarray) -> np.ndarray:
        lengths.append(len(rows))
        return 2 * rows

    found = piecewise(doubled, lambda: looks.append(1))(numbers, None)
    assert lengths == [PIECE_ROWS, PIECE_ROWS, PIECE_ROWS - 5]
    assert np.array_equal(found, 2 * numbers)
    assert len(looks) == 3
