"""The memory of request ids: what it forgets, and what it never does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ops.gateway import asking
from ops.gateway.asking import Asker, Repeats
from producer import Options, ProducerSettings
from producer.errors import Cancelled, DuplicateRequest, InvalidRequest, QueueError, ResultTimeout
from producer.messages import Reply


def test_an_id_that_is_asked_under_is_known_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: clock[0])
    repeats = Repeats(for_s=60)
    assert repeats.begin("slow", 1) is None
    repeats.begin("quick", 1)
    repeats.leave("quick")
    for clock[0] in (61.0, 600.0):
        with pytest.raises(DuplicateRequest, match="other contexts"):
            repeats.begin("slow", 2)
        assert repeats.begin("quick", 2) is None
        repeats.leave("quick")
    repeats.leave("slow")
    clock[0] = 700.0
    assert repeats.begin("slow", 2) is None


def test_answers_of_others_push_out_no_id_that_is_asked_under(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "KEPT_BYTES_MAX", 100_000)
    repeats, answer = (
        Repeats(for_s=60),
        Reply(id="r", vector=np.zeros(768, np.float32), confidence=0.5, margin=0.1),
    )
    repeats.begin("slow", 1)
    for number in range(100):
        repeats.begin(f"r{number}", 1)
        repeats.end(f"r{number}", 1, answer)
        repeats.leave(f"r{number}")
    with pytest.raises(DuplicateRequest):
        repeats.begin("slow", 2)
    assert repeats.begin("r0", 2) is None  # the oldest answers went


def test_an_id_stays_with_those_who_ask_on_when_another_one_took_his_request_back() -> None:
    repeats = Repeats(for_s=60)
    repeats.begin("a", 1)
    repeats.begin("a", 1)
    repeats.leave("a")  # who was cancelled
    with pytest.raises(DuplicateRequest):
        repeats.begin("a", 2)
    repeats.end("a", 1, None)  # and who waited to no end
    repeats.leave("a")
    with pytest.raises(DuplicateRequest):
        repeats.begin("a", 2)
    assert repeats.begin("a", 1) is None


def test_a_repeat_without_an_end_keeps_the_id_for_its_contexts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: clock[0])
    repeats = Repeats(for_s=60)
    for began_s, ended_s in (0.0, 30.0), (65.0, 95.0):
        clock[0] = began_s
        repeats.begin("a", 1)
        clock[0] = ended_s
        repeats.end("a", 1, None)
        repeats.leave("a")
    clock[0] = 150.0
    with pytest.raises(DuplicateRequest):
        repeats.begin("a", 2)
    clock[0] = 156.0
    assert repeats.begin("a", 2) is None


def test_how_a_request_ended_is_told_to_its_repeat_and_to_no_other_contexts() -> None:
    repeats, error = Repeats(for_s=60), InvalidRequest("wrong")
    repeats.begin("a", 1)
    repeats.end("a", 1, error)
    repeats.leave("a")
    assert repeats.begin("a", 1) is error
    with pytest.raises(DuplicateRequest):
        repeats.begin("a", 2)


class Script:
    """A producer whose requests end as it is told, one after the other."""

    settings, waiting = ProducerSettings(), dict[str, Any]()

    def __init__(self, *ends: Exception) -> None:
        self._ends = list(ends)

    async def submit(self, *_: object, **__: object) -> Any:
        end, handle = self._ends.pop(0), SimpleNamespace(id="a")

        async def result(_: float) -> Any:
            if isinstance(end, Cancelled):
                self.waiting.clear()  # its client went
            raise end

        async def cancel() -> None:
            """It is too late."""

        handle.result, handle.cancel = result, cancel
        return handle


@pytest.mark.parametrize("asked_before", [False, True])
def test_an_id_whose_request_was_taken_back_is_free_for_other_contexts(asked_before: bool) -> None:
    ends = [ResultTimeout("late")] * asked_before + [Cancelled("its client went"), InvalidRequest("new")]

    async def asked() -> list[type[BaseException]]:
        script = Script(*ends)
        asker, found = Asker(script), []  # type: ignore[arg-type]
        script.waiting = asker._waiting
        for number, _ in enumerate(ends):
            context = np.full((5, 768), number == len(ends) - 1, np.float32)
            try:
                await asker.ask(context, Options(request_id="a"), None)  # type: ignore[arg-type]
            except QueueError as error:
                found.append(type(error))
        return found

    assert asyncio.run(asked()) == [type(end) for end in ends]
