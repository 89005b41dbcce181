"""A running service says where the time went: every answer is counted, and the stages add up."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from command import Amn, address
from numpy.typing import NDArray
from waiting import wait_until

from ops import stages
from producer import Options, Producer
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.stages import END_TO_END, REPLY, STAGES, StageHistogram, merged
from producer.transport.connection import connect

KEYS = Keys()
COUNT, IN_FLIGHT = 1920, 64


class Counted:
    """The times of what a client sent, by the workers and by the client itself."""

    def __init__(self, service: Amn, contexts: NDArray[np.float32]) -> None:
        settings = ProducerSettings(url=address(service.folder), stages=True)
        with contextlib.closing(connect(settings)) as client, Producer(settings=settings) as producer:
            before: list[StageHistogram] | None = None
            while before != (told := stages.read_total(client, KEYS)):  # until what was before is told
                before = told
                time.sleep(1.5)
            self.served: list[str] = []
            for first in range(0, COUNT, IN_FLIGHT):
                some = [contexts[i % len(contexts)] for i in range(first, first + IN_FLIGHT)]
                handles = producer.submit_many(some, options=Options(escalate=not first % 10))
                self.served += [handle.result().served_by for handle in handles]
            wait_until(lambda: self._read(client, told) == COUNT)
            self.lately = stages.read(client, KEYS, 120)
            self.own = producer.stages

    def _read(self, client: object, before: list[StageHistogram]) -> int:
        self.found = stages.grown(before, stages.read_total(client, KEYS))  # type: ignore[arg-type]
        return self.of(END_TO_END).count

    def of(self, stage: str, **labels: str) -> StageHistogram:
        some = [one for one in self.found if all(getattr(one, name) == text for name, text in labels.items())]
        return next((one for one in merged(some, "stage") if one.stage == stage), StageHistogram(stage=stage))

    def sum_ms(self, **labels: str) -> float:
        return sum(self.of(stage, **labels).mean_ms or 0 for stage in STAGES)


@pytest.fixture(scope="module")
def counted(service: Amn, real_contexts: NDArray[np.float32]) -> Counted:
    return Counted(service, real_contexts)


def test_every_answer_is_counted_in_every_stage(counted: Counted) -> None:
    fast = counted.served.count("amn")
    for stage in STAGES:
        assert counted.of(stage, kind="amn").count == COUNT, stage
        answered = counted.of(stage, kind="fallback", outcome="answered").count
        assert answered == counted.of(stage, kind="amn", outcome="escalated").count, stage
    assert counted.of(END_TO_END, kind="amn").count <= fast < COUNT
    lately = [one for one in counted.lately if (one.stage, one.kind) == ("queue", "amn")]
    assert sum(one.count for one in lately) >= COUNT


@pytest.mark.parametrize("kind", ["amn", "fallback"])
def test_the_stages_of_the_workers_add_up_to_their_end_to_end(counted: Counted, kind: str) -> None:
    whole_ms = counted.of(END_TO_END, kind=kind, outcome="answered").mean_ms
    parts_ms = counted.sum_ms(kind=kind, outcome="answered")
    if kind == "fallback":
        parts_ms += counted.sum_ms(kind="amn", outcome="escalated")
    assert parts_ms == pytest.approx(whole_ms, rel=0.05)


def test_with_the_way_back_they_add_up_to_what_the_client_measured(counted: Counted) -> None:
    whole, back = (next(one for one in counted.own if one.stage == stage) for stage in (END_TO_END, REPLY))
    assert whole.count == back.count == COUNT
    ends = [counted.of(END_TO_END, kind=kind) for kind in ("amn", "fallback")]
    served_ms = sum(one.sum_us for one in ends) / COUNT / 1000
    assert served_ms + back.mean_ms == pytest.approx(whole.mean_ms, rel=0.05)
