"""How the levels of a queue share a read, for any backlog."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.entry import Entry
from workers.engine.sizes import ReadSizes
from workers.engine.yielding import Yielding

backlogs = st.lists(st.integers(0, 2000), min_size=3, max_size=3)


def read(shares: ReadSizes, backlog: list[int], *, waits: bool) -> list[int]:
    """One read of this backlog, as the server answers it."""
    asked = [shares.waiting(3)] * 3 if waits else shares.counts()
    got = [min(count, waiting) for count, waiting in zip(asked, backlog, strict=True)]
    shares.took(asked, got)
    for level, count in enumerate(got):
        backlog[level] -= count
    return got


@given(st.integers(1, 300), backlogs, st.lists(backlogs, max_size=20))
def test_a_read_is_never_larger_than_a_batch_and_asks_every_level(batch_max, backlog, arrivals):
    shares = ReadSizes(batch_max, 3)
    read(shares, backlog, waits=True)
    for more in arrivals:
        counts = shares.counts()
        assert sum(counts) <= max(batch_max, 3)
        assert min(counts) >= 1
        read(shares, backlog, waits=False)
        backlog = [a + b for a, b in zip(backlog, more, strict=True)]


@given(st.integers(16, 300), backlogs)
def test_from_the_second_read_of_a_backlog_on_the_highest_level_gets_all_but_an_eighth(batch_max, backlog):
    shares = ReadSizes(batch_max, 3)
    read(shares, backlog, waits=True)
    while shares.more:
        high_waited = backlog[0]
        high, normal, low = read(shares, backlog, waits=False)
        if high_waited >= batch_max:
            assert high >= batch_max - 2 * (batch_max // 16)
            assert normal + low <= 2 * (batch_max // 16)


@given(st.integers(1, 300), backlogs)
def test_each_level_that_waits_gets_its_part_of_every_read(batch_max, backlog):
    shares = ReadSizes(batch_max, 3)
    reads = 0
    while any(backlog) and reads < 10_000:
        waiting = list(backlog)
        got = read(shares, backlog, waits=reads == 0)
        assert all(count > 0 for count, there in zip(got, waiting, strict=True) if there)
        if reads > 1:
            sure = max(1, batch_max // 16)
            assert all(c >= min(sure, there) or c == 1 for c, there in zip(got, waiting, strict=True))
        reads += 1
    assert not any(backlog)


@given(st.integers(1, 300), backlogs)
def test_a_read_that_left_something_says_so(batch_max, backlog):
    shares = ReadSizes(batch_max, 3)
    read(shares, backlog, waits=True)
    assert shares.more or not any(backlog)
    read(shares, backlog, waits=False)
    assert shares.more or not any(backlog)


def test_one_level_alone_gets_nearly_the_whole_batch():
    shares = ReadSizes(256, 3)
    backlog = [0, 5000, 0]
    assert read(shares, backlog, waits=True) == [0, 85, 0]
    assert [read(shares, backlog, waits=False) for _ in range(3)] == [[0, 254, 0]] * 3


def test_what_one_level_leaves_over_goes_to_the_next():
    shares = ReadSizes(64, 3)
    backlog = [0, 5000, 5000]
    read(shares, backlog, waits=True)
    for _ in range(5):  # a few urgent ones arrive for each read
        backlog[0] += 5
        high, normal, low = read(shares, backlog, waits=False)
    assert (high, low) == (5, 4)
    assert normal >= 64 - 5 - 4 - 5


def entry_of(size_bytes: int, place: int = 2) -> Entry:
    return Entry(b"1-1", {b"request": bytes(size_bytes)}, 1, place)


def test_what_is_large_or_was_lost_makes_reads_unusual_until_it_is_forgotten():
    shares = ReadSizes(256, 3)
    assert shares.usual
    shares.took([85] * 3, [0, 1, 0], [entry_of(3_000_000)])
    found = []
    for _ in range(8):
        found.append(shares.usual)
        shares.took([85] * 3, [0, 1, 0], [entry_of(15_000)])
    assert (found[0], found[-1]) == (False, True)
    shares.note_lost()
    assert not shares.usual
    for _ in range(40):
        shares.took([shares.entries] * 3, [0, 0, 0])
    assert shares.usual


def test_low_work_makes_reads_unusual_while_more_of_it_is_expected():
    turns = Yielding()
    shares = ReadSizes(256, 3, turns)
    shares.took([85] * 3, [0, 0, 85], [entry_of(15_000, 3)] * 85)
    assert not shares.usual
    shares.took([85] * 3, [0, 0, 1], [entry_of(15_000, 3)])
    assert shares.usual
