"""A running service says where the time went: every answer is counted, and the stages add up."""

from __future__ import annotations

import contextlib
import time

import numpy as np
from command import Amn, address, wait_until
from numpy.typing import NDArray

from ops import stages
from ops.stages import StageHistogram
from producer import Options, Producer
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.stages import END_TO_END, STAGES
from producer.transport.connection import connect

KEYS = Keys()
IN_FLIGHT = 64


def counted(histograms: list[StageHistogram], stage: str, **labels: str) -> StageHistogram:
    some = (one for one in histograms if all(getattr(one, name) == text for name, text in labels.items()))
    return next(
        (one for one in stages.merged(some, "stage") if one.stage == stage), StageHistogram(stage=stage)
    )


def test_every_answer_is_counted_in_every_stage(service: Amn, real_contexts: NDArray[np.float32]) -> None:
    settings = ProducerSettings(url=address(service.folder))
    with contextlib.closing(connect(settings)) as client, Producer(settings=settings) as producer:
        time.sleep(1.5)  # what was before is told
        before = stages.read_total(client, KEYS)
        fast_ms, slow_ms = [], []
        for first in range(0, 1920, IN_FLIGHT):
            contexts = [real_contexts[i % len(real_contexts)] for i in range(first, first + IN_FLIGHT)]
            for handle in producer.submit_many(contexts, options=Options()):
                (fast_ms if handle.result().served_by == "amn" else slow_ms).append(handle.latency_ms)

        def found() -> list[StageHistogram]:
            return stages.grown(before, stages.read_total(client, KEYS))

        def all_of_them() -> bool:
            return counted(found(), END_TO_END).count == 1920

        wait_until(all_of_them)
        assert counted(found(), "queue", kind="amn").count == 1920
        lately = stages.read(client, KEYS, 120)
        assert counted(lately, "queue", kind="amn").count >= 1920
    for stage in (*STAGES, END_TO_END):
        assert counted(found(), stage, kind="amn", outcome="answered").count == len(fast_ms), stage
