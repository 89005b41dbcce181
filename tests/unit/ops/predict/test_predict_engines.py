"""An engine behind a queue asks for what the file chose, and for nothing else."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ops.predict.engines import QueueEngine, QueueEngineSettings
from producer import Options, Producer


class FakeProducer:
    """Keeps the options of what is submitted."""

    def __init__(self) -> None:
        self.options: list[Options] = []

    def submit_batch(self, contexts: Any, *, options: Options, block: bool) -> None:
        self.options.append(options)


def test_no_lane_escalates_rows_that_the_file_did_not_choose() -> None:
    producer = FakeProducer()
    settings = QueueEngineSettings(lane="med-guideline")
    engine = QueueEngine(cast(Producer, producer), settings, lambda *_: None)
    contexts = np.zeros((1, 5, 768), np.float32)
    engine.fast(contexts)
    engine.slow(contexts)
    assert [(one.lane, one.escalate) for one in producer.options] == [
        ("general", False),
        ("med-guideline", True),
    ]
