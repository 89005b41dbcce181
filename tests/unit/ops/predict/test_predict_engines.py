"""An engine behind a queue asks for what the file chose, and for nothing else."""

from __future__ import annotations

from typing import cast

import numpy as np

from ops.predict.engines import QueueEngine, QueueEngineSettings
from producer import Options, Producer, Windows


class FakeProducer:
    """Keeps what is submitted, and its options."""

    def __init__(self) -> None:
        self.sent: list[Windows] = []
        self.options: list[Options] = []

    def submit_batch(self, windows: Windows, *, options: Options, block: bool) -> None:
        self.sent.append(windows)
        self.options.append(options)


def test_no_lane_escalates_rows_that_the_file_did_not_choose() -> None:
    producer = FakeProducer()
    settings = QueueEngineSettings(lane="med-guideline")
    engine = QueueEngine(cast(Producer, producer), settings, lambda *_: None)
    windows = Windows(vectors=np.zeros((5, 768), np.float32), ends=np.array([4]))
    engine.fast(windows)
    engine.slow(windows)
    assert [(one.lane, one.escalate) for one in producer.options] == [
        ("general", False),
        ("med-guideline", True),
    ]


def test_rows_of_documents_are_sent_once_however_many_contexts_hold_them() -> None:
    producer = FakeProducer()
    engine = QueueEngine(cast(Producer, producer), QueueEngineSettings(), lambda *_: None)
    vectors = np.arange(600 * 768, dtype=np.float32).reshape(600, 768)
    windows = Windows(vectors=vectors, ends=np.arange(4, 600), checked=True)
    engine.fast(windows)
    assert [len(one) for one in producer.sent] == [256, 256, 84]
    assert [len(one.vectors) for one in producer.sent] == [260, 260, 88]
    assert all(one.checked for one in producer.sent)
    contexts = np.concatenate([one.contexts() for one in producer.sent])
    np.testing.assert_array_equal(contexts, windows.contexts())
