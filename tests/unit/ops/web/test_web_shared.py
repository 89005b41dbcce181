"""An answer that many wait for is made once, also when it is an error."""

from __future__ import annotations

import asyncio
import time
import traceback

import pytest

from ops.page import feed
from ops.page.feed import Feed
from ops.web.shared import Shared


class Hanging:
    """Hangs for a moment and fails, as often as it is to; then it answers."""

    def __init__(self, fails: int) -> None:
        self.fails, self.made = fails, 0

    def __call__(self) -> bytes:
        self.made += 1
        time.sleep(0.1)
        if self.made <= self.fails:
            raise TimeoutError(f"try {self.made}")
        return b"well"


def test_those_who_wait_while_the_server_hangs_share_one_try_and_its_error() -> None:
    make = Hanging(fails=1)

    async def ask() -> None:
        shared = Shared(make, 0.3)
        for _ in range(2):  # while it hangs, and when it has failed just now
            found = await asyncio.gather(*(shared() for _ in range(20)), return_exceptions=True)
            assert {str(one) for one in found} == {"try 1"}
        assert make.made == 1
        await asyncio.sleep(0.35)
        assert await asyncio.gather(*(shared() for _ in range(20))) == [b"well"] * 20
        assert make.made == 2

    asyncio.run(ask())


def test_an_error_that_many_are_told_does_not_grow_and_is_as_old_as_its_question() -> None:
    make = Hanging(fails=2)

    async def ask() -> None:
        shared = Shared(make, 0.5)
        lengths = []
        for _ in range(20):
            with pytest.raises(TimeoutError) as told:
                await shared()
            lengths.append(len(traceback.extract_tb(told.value.__traceback__)))
        assert len(set(lengths)) == 1
        assert make.made == 1
        await asyncio.sleep(0.41)  # the look itself took 0.1 s of the 0.5
        with pytest.raises(TimeoutError, match="try 2"):
            await shared()

    asyncio.run(ask())


def test_one_who_leaves_takes_the_answer_from_nobody() -> None:
    make = Hanging(fails=0)

    async def ask() -> None:
        shared = Shared(make, 10.0)
        first, second = (asyncio.create_task(shared()) for _ in range(2))
        await asyncio.sleep(0.02)
        first.cancel()
        assert await second == b"well"
        assert make.made == 1

    asyncio.run(ask())


def test_who_asks_for_a_snapshot_shares_the_tries_of_those_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PERIOD_S", 0.3)
    make = Hanging(fails=1)

    async def ask() -> None:
        shown = Feed(make)
        watching = shown.follow()
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0.02)
        asked = await asyncio.gather(*(shown.latest() for _ in range(20)), return_exceptions=True)
        assert {str(one) for one in asked} == {"try 1"}
        assert make.made == 1
        assert await first == b"well"
        assert make.made == 2
        await watching.aclose()

    asyncio.run(ask())


def test_who_watches_gets_each_snapshot_also_while_others_ask_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "PERIOD_S", 0.02)

    async def watch() -> None:
        made = iter(range(1_000))
        shown = Feed(lambda: b"%d" % next(made))
        watching = shown.follow()

        async def ask() -> None:
            while True:
                await shown.latest()
                await asyncio.sleep(0.001)

        asking = asyncio.create_task(ask())
        async with asyncio.timeout(10.0):
            seen = [int(await anext(watching)) for _ in range(20)]
        asking.cancel()
        await watching.aclose()
        assert seen == sorted(set(seen))

    asyncio.run(watch())
