"""Files of contexts: streamed through a producer, one bad row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ops.errors import FileRefused
from ops.files import FileOptions, open_contexts, predict_rows
from producer.errors import InferenceFailed, QueueError, ResultTimeout
from producer.messages import BatchReply, Reply

Contexts = NDArray[np.float32]


class EchoHandle:
    """Answers with the newest context vector, or with an error."""

    def __init__(self, context: Contexts, error: QueueError | None) -> None:
        self._context, self._error = context, error

    def result(self) -> Reply:
        if self._error is not None:
            raise self._error
        vector = self._context[-1].astype(np.float32)
        return Reply(id="r", vector=vector, confidence=1, margin=1, served_by="gru")

    def first(self) -> Reply:
        vector = self._context[0].astype(np.float32)
        return Reply(id="r", vector=vector, confidence=1, margin=1)


class EchoBatchHandle:
    """The same for a batch: every third row is shed as `batch`, or one error ends all."""

    def __init__(self, contexts: Contexts, errors: list[QueueError]) -> None:
        self._contexts, self._errors = contexts, errors

    def result(self, place: int = -1) -> BatchReply:
        if self._errors:
            raise self._errors[0]
        count = len(self._contexts)
        ones = np.ones(count, np.float32)
        return BatchReply(
            id="b",
            vectors=self._contexts[:, place].astype(np.float32),
            **dict.fromkeys(("confidences", "margins", "gains"), ones),
            rules=("thin_margin",),
            sheds=("no_gain", "batch"),
            **dict.fromkeys(("fired", "shed"), np.array([2, 0, 1] * count, np.uint8)[:count]),
        )

    def first(self) -> BatchReply:
        return self.result(0)


class EchoProducer:
    """Remembers how many requests were ever in flight at once.

    Args:
        errors: By the number of the row: what its own request fails with, and its batch.
    """

    def __init__(self, errors: dict[int, QueueError] | None = None) -> None:
        self.errors = errors or {}
        self.sent = self.batches = 0
        self.rows = 0
        self.failing: dict[bytes, QueueError] = {}
        self.options: list[Any] = []

    def submit_batch(self, contexts: Contexts, *, options: Any, block: bool) -> EchoBatchHandle:
        assert block
        self.options.append(options)
        for row, error in self.errors.items():
            if row in range(self.rows, self.rows + len(contexts)):
                self.failing[contexts[row - self.rows].tobytes()] = error
        failing = [
            error for row, error in self.errors.items() if row in range(self.rows, self.rows + len(contexts))
        ]
        self.batches += 1
        self.rows += len(contexts)
        return EchoBatchHandle(contexts, failing)

    def submit_many(self, contexts: list[Contexts], *, options: Any, block: bool) -> list[EchoHandle]:
        assert block
        self.options.append(options)
        handles = [EchoHandle(c, self.failing.get(c.tobytes())) for c in contexts]
        self.sent += len(contexts)
        return handles


def predicted(source: Path, producer: EchoProducer, **options: Any) -> tuple[Any, NDArray[np.float32]]:
    target = source.with_name("out.npy")
    result = predict_rows(
        source,
        target,
        producer,  # type: ignore[arg-type]
        FileOptions(**options),
        lambda *_: None,
    )
    return result, np.load(target, allow_pickle=False)


@pytest.fixture
def rows(contexts: Any) -> Contexts:
    return contexts(300)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_row_gets_its_own_answer_in_order(tmp_path: Path, rows: Contexts, dtype: type) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows.astype(dtype))
    result, out = predicted(source, EchoProducer())
    assert out.dtype == np.float32
    assert (out == rows.astype(dtype)[:, -1].astype(np.float32)).all()
    # A third of the rows was worth an escalation: those went again by themselves.
    assert result.to_json()["served_by"] == {"amn": 199, "gru": 101}


def test_fast_takes_the_first_answer_and_asks_for_it(tmp_path: Path, rows: Contexts) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows)
    producer = EchoProducer()
    _, out = predicted(source, producer, fast=True)
    assert (out == rows[:, 0]).all()
    assert producer.sent == 0  # what AMN answered is enough
    assert all(option.provisional for option in producer.options)


def test_a_bad_row_fails_alone_by_index_and_code(tmp_path: Path, rows: Contexts) -> None:
    rows[17, 2, 5] = np.nan
    rows[200] *= 3
    source = tmp_path / "in.npy"
    np.save(source, rows)
    result, out = predicted(source, EchoProducer())
    assert [(row, code) for row, code, _ in result.failures] == [(17, "not_finite"), (200, "bad_norm")]
    assert np.flatnonzero(np.isnan(out).any(axis=1)).tolist() == [17, 200]


def test_normalize_serves_rows_of_another_norm(tmp_path: Path, rows: Contexts) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows * 3)
    result, out = predicted(source, EchoProducer(), normalize=True)
    assert result.failed == 0
    assert out == pytest.approx(rows[:, -1], abs=1e-6)


def test_a_row_that_the_worker_refuses_is_named_too(tmp_path: Path, rows: Contexts) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows)
    result, out = predicted(source, EchoProducer({64: InferenceFailed("no unit vector")}))
    assert result.failures == [(64, "inference_failed", "no unit vector")]
    assert np.isnan(out[64]).all()


def test_workers_that_are_gone_end_the_file_and_leave_no_output(tmp_path: Path, rows: Contexts) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows)
    with pytest.raises(ResultTimeout):
        predicted(source, EchoProducer({5: ResultTimeout("no answer")}))
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((3, 768), np.float32), r"shape \(3, 768\)"),
        (np.zeros((3, 4, 768), np.float32), r"shape \(3, 4, 768\)"),
        (np.zeros((0, 5, 768), np.float32), "N >= 1"),
        (np.zeros((1, 5, 768), np.float64), "float64"),
        (np.zeros((1, 5, 768), np.int32), "int32"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
    ],
)
def test_what_is_not_a_file_of_contexts_is_refused(tmp_path: Path, array: Any, what: str) -> None:
    source = tmp_path / "in.npy"
    np.save(source, array, allow_pickle=True)
    with pytest.raises(FileRefused, match=what):
        open_contexts(source)


def test_an_output_in_a_missing_folder_is_refused_before_the_work(tmp_path: Path, rows: Contexts) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows)
    producer = EchoProducer()
    with pytest.raises(FileRefused, match="does not exist"):
        predict_rows(
            source,
            tmp_path / "no" / "out.npy",
            producer,  # type: ignore[arg-type]
            FileOptions(),
            lambda *_: None,
        )
    assert producer.sent == 0


@pytest.mark.parametrize("wrong", [0, -1])
def test_rows_that_may_not_wait_at_all_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"in_flight is .*at least 1"):
        FileOptions(in_flight=wrong)
