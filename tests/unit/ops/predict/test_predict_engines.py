"""An engine behind a queue asks for what the file chose, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest

from ops.errors import RunStopped
from ops.predict import engines
from ops.predict.answers import Answers, answers_of
from ops.predict.engines import QueueEngine
from ops.predict.settings import PredictSettings
from producer import Options, Producer, Windows
from producer.errors import AuthenticationFailed, RequestLost
from producer.messages import BatchReply
from producer.protocol import wire

SETTINGS = PredictSettings(sources=["in.npy"], out="out")


def a_reply() -> BatchReply:
    """As it comes from a worker: its arrays cannot be written to."""
    sent = BatchReply(
        id="a",
        vectors=np.eye(3, 768, dtype=np.float32),
        **dict.fromkeys(("confidences", "margins", "gains"), np.ones(3, np.float32)),
        rules=("low_confidence",),
        fired=np.ones(3, np.uint8),
        sheds=("batch",),
        shed=np.ones(3, np.uint8),
    )
    reply = wire.decode_reply(wire.encode_reply(sent))
    assert isinstance(reply, BatchReply)
    return reply


class FakeProducer:
    """Keeps what is submitted, and its options."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.options: list[Options] = []

    def submit_batch(self, contexts: Any, *, options: Options, block: bool) -> Any:
        self.sent.append(contexts)
        self.options.append(options)


def test_no_lane_escalates_rows_that_the_file_did_not_choose() -> None:
    producer = FakeProducer()
    settings = replace(SETTINGS, lane="med-guideline")
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
    engine = QueueEngine(cast(Producer, producer), SETTINGS, lambda *_: None)
    vectors = np.arange(600 * 768, dtype=np.float32).reshape(600, 768)
    windows = Windows(vectors=vectors, ends=np.arange(4, 600), checked=True)
    engine.fast(windows)
    assert [len(one) for one in producer.sent] == [256, 256, 84]
    assert [len(one.vectors) for one in producer.sent] == [260, 260, 88]
    assert all(one.checked for one in producer.sent)
    contexts = np.concatenate([one.contexts() for one in producer.sent])
    np.testing.assert_array_equal(contexts, windows.contexts())


class OldWorkers(FakeProducer):
    """Lose every message whose contexts share vectors, and answer the others."""

    def submit_batch(self, contexts: Any, *, options: Options, block: bool) -> Any:
        super().submit_batch(contexts, options=options, block=block)
        return self.lost if isinstance(contexts, Windows) else SimpleNamespace(result=lambda **_: a_reply())

    lost = SimpleNamespace(result=Mock(side_effect=RequestLost("a")))


def test_a_message_that_was_lost_goes_in_the_form_that_every_worker_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "_PAUSE_S", 0.0)
    producer, told = OldWorkers(), Mock()
    engine = QueueEngine(cast(Producer, producer), SETTINGS, told)
    windows = Windows(vectors=np.eye(7, 768, dtype=np.float32), ends=np.array([4, 5, 6]), checked=True)
    for _ in range(2):
        assert engine.fast(windows)().vectors.shape == (3, 768)
    assert [type(one) for one in producer.sent] == [Windows, np.ndarray, np.ndarray]
    np.testing.assert_array_equal(producer.sent[1], windows.contexts())
    assert told.call_count == 1


def test_a_right_that_is_missing_ends_a_run_that_waits_for_all_else() -> None:
    submit_batch = Mock(side_effect=[AuthenticationFailed("this user may not")])
    told = Mock()
    engine = QueueEngine(Mock(submit_batch=submit_batch), SETTINGS, told)
    with pytest.raises(RunStopped, match="this user may not; what is done stays"):
        engine.fast(Windows(vectors=np.eye(5, 768, dtype=np.float32), ends=np.array([4])))
    assert not told.called


def test_the_rows_of_a_lone_message_can_be_bettered_by_a_fallback() -> None:
    vectors, reply = np.eye(3, 768, dtype=np.float32), a_reply()
    answers, other = Answers.joined([answers_of(reply)]), Answers(1, -vectors[1:2])
    answers.taken = np.array([1])
    answers.better(other)
    np.testing.assert_array_equal(answers.vectors, np.stack([vectors[0], -vectors[1], vectors[2]]))
    np.testing.assert_array_equal(answers.fast, vectors[1:2])
    assert answers.sheds.tolist() == ["batch", "", "batch"]
