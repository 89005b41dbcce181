"""The funnel joins what arrives during a round trip, and keeps every sender's own outcome."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from producer import errors
from producer.session.submission import SEND_BYTES_MAX, SEND_COUNT_MAX
from producer.session.tasks import Funnel


class Item(str):
    """A request, as much of it as a funnel looks at."""

    payload = b""


class Large(Item):
    payload = bytes(SEND_BYTES_MAX // 2)


class Line:
    """A round trip that a test lets pass."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, batch) -> list[int]:
        self.sent.append(list(batch))
        await self.gate.wait()
        if self.error:
            raise self.error
        return [int(item[1:]) for item in batch]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_idle_funnel_sends_at_once_and_a_busy_one_together(run):
    async def main():
        line = Line()
        funnel = Funnel(line.send)
        tasks = [asyncio.create_task(funnel.send([Item("r0")]))]
        await settle()
        tasks += [
            asyncio.create_task(funnel.send(batch)) for batch in ([Item("r1"), Item("r2")], [Item("r3")])
        ]
        await settle()
        line.gate.set()
        assert await asyncio.gather(*tasks) == [[0], [1, 2], [3]]
        assert line.sent == [["r0"], ["r1", "r2", "r3"]]

    run(main())


def test_a_round_trip_is_bounded_and_order_holds(run):
    async def main():
        line = Line()
        line.gate.set()
        funnel = Funnel(line.send)
        names = [[Item(f"r{i}")] for i in range(2 * SEND_COUNT_MAX + 5)]
        await asyncio.gather(*(funnel.send(batch) for batch in names))
        assert [len(batch) for batch in line.sent] == [SEND_COUNT_MAX, SEND_COUNT_MAX, 5]
        assert [item for batch in line.sent for item in batch] == [name for (name,) in names]

    run(main())


def test_a_round_trip_is_bounded_in_bytes_too(run):
    async def main():
        line = Line()
        line.gate.set()
        funnel = Funnel(line.send)
        batches = [[Large(f"r{i}")] for i in range(3)] + [[Item("r3")]]
        await asyncio.gather(*(funnel.send(batch) for batch in batches))
        assert line.sent == [["r0", "r1"], ["r2", "r3"]]

    run(main())


def test_whose_task_was_cancelled_before_it_was_sent_is_not_sent(run):
    async def main():
        line = Line()
        funnel = Funnel(line.send)
        first = asyncio.create_task(funnel.send([Item("r0")]))
        await settle()
        kept, dropped = (asyncio.create_task(funnel.send([Item(name)])) for name in ("r1", "r2"))
        await settle()
        dropped.cancel()
        await settle()
        line.gate.set()
        assert await first == [0]
        assert await kept == [1]
        assert line.sent == [["r0"], ["r1"]]

    run(main())


def test_an_error_reaches_all_of_its_round_trip_and_nobody_else(run):
    async def main():
        line = Line()
        funnel = Funnel(line.send)
        one = asyncio.create_task(funnel.send([Item("r1")]))
        await settle()
        line.error = errors.ServerUnavailable("gone")
        line.gate.set()
        with pytest.raises(errors.ServerUnavailable):
            await one
        line.error = None
        assert await funnel.send([Item("r2")]) == [2]

    run(main())


def test_closing_tells_those_who_wait(run):
    async def main():
        line = Line()
        funnel = Funnel(line.send)
        sent = asyncio.create_task(funnel.send([Item("r1")]))
        await settle()
        waiting = asyncio.create_task(funnel.send([Item("r2")]))
        await settle()
        await funnel.close()
        for task in (sent, waiting):
            with pytest.raises(errors.ProducerClosed):
                await task

    run(main())


def test_nothing_is_sent_after_a_cancellation_that_met_an_answer(run):
    """The driver may lose the one cancellation of `close`: the round trip ends as if there were none."""

    class Losing(Line):
        async def send(self, batch) -> list[int]:
            self.sent.append(list(batch))
            with suppress(asyncio.CancelledError):
                await self.gate.wait()
            return [int(item[1:]) for item in batch]

    async def main():
        line = Losing()
        funnel = Funnel(line.send)
        sent = asyncio.create_task(funnel.send([Item("r0")]))
        await settle()
        waiting = [asyncio.create_task(funnel.send([Item(f"r{i}")])) for i in range(1, 2 * SEND_COUNT_MAX)]
        await settle()
        await funnel.close()
        assert await sent == [0]
        for task in waiting:
            with pytest.raises(errors.ProducerClosed):
                await task
        assert line.sent == [["r0"]]

    run(main())
