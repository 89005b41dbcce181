"""What a file reports to the shadow evaluation, and what becomes of what it cannot."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ops.predict import truths as truths_module
from ops.predict.sources import RowGroup
from ops.predict.truths import TruthReporter
from ops.predict.windows import RowBlock
from producer import Options, Producer
from producer.errors import DuplicateRequest, QueueError, QueueFull, ServerUnavailable
from producer.keys import Keys
from producer.protocol import wire
from producer.sampling import sampled_one_in

SOURCE = {"sha256": "0" * 64, "bytes": 10, "rows": 4_000}
GROUP = RowGroup(1, cast(Any, None), 1, "in.parquet", 2_000, 2_000)
ROWS = 2_000


class FakeProducer:
    """Keeps what is sent; `outcome` is how each request ends, `refusal` what a submit raises."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(sample_salt="amn", url="redis://nowhere", queue="main")
        self.channels = [SimpleNamespace(settings=self.settings)]
        self.options: list[Options] = []
        self.truths: dict[str, NDArray[np.floating]] = {}
        self.outcome: QueueError | None = None
        self.refusal: QueueError | None = None

    def submit_batches(self, batches: list[NDArray[np.floating]], *, options: list[Options]) -> list[Any]:
        assert [batch.shape for batch in batches] == [(1, 5, 768)] * len(options)
        if self.refusal:
            raise self.refusal
        self.options += options

        def result(timeout_ms: float) -> None:
            if self.outcome:
                raise self.outcome

        return [SimpleNamespace(result=result, done=lambda: True) for _ in options]


class FakeServer:
    """A server, and a pipeline to it, that keeps the truths."""

    def __init__(self, waiting: int, truths: dict[str, NDArray[np.floating]]) -> None:
        self.waiting, self.truths = waiting, truths

    def pipeline(self, transaction: bool) -> Any:
        return contextlib.nullcontext(self)

    def execute_command(self, *words: Any) -> None:
        assert words[:6] == ("XADD", Keys("main").truths, "MAXLEN", "~", 20_000, "*")
        entry = dict(zip(words[6::2], words[7::2], strict=True))
        assert entry["kind"] == "truth"
        self.truths[entry["key"]] = wire.decode_vector(entry["vector"])

    def execute(self) -> None:
        pass

    def xlen(self, _: str) -> int:
        return self.waiting

    def close(self) -> None:
        pass


def block(**changes: Any) -> RowBlock:
    """One document, whose row i is the i-th axis, in turn."""
    vectors = np.eye(768, dtype=np.float32)[np.arange(ROWS + 5) % 768]
    fields: dict[str, Any] = {
        "group": 0,
        "file": "in.parquet",
        "first_row": GROUP.first_row,
        "vectors": vectors,
        "step": 1,
        "errors": {},
        "known": np.ones(ROWS, bool),
        "kept": pa.RecordBatch.from_pydict({"domain": pa.array(["law", None] * (ROWS // 2))}),
    }
    return RowBlock(**fields | changes)


def offered(producer: FakeProducer, waiting: int = 0, model: str = "m@1", **changes: Any) -> TruthReporter:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truths_module, "connect", lambda _: FakeServer(waiting, producer.truths))
        with TruthReporter(cast(Producer, producer), "low", "domain") as reporter:
            reporter.offer(SOURCE, GROUP, block(**changes), model)
            reporter.finish()
    return reporter


def test_one_row_in_a_hundred_is_sent_with_what_came_next_and_its_domain() -> None:
    producer = FakeProducer()
    reporter = offered(producer)
    assert reporter.sampled == reporter.reported == len(producer.options) > 5
    assert len(producer.truths) == len(producer.options)
    for options in producer.options:
        truth = producer.truths[f"{options.sequence}#{options.position}"]
        assert sampled_one_in(f"{options.sequence}#{options.position}", 100)
        assert int(truth.argmax()) == (options.position + 5) % 768
        assert options.domain == ("law" if options.position % 2 == 0 else "")
        assert (options.lane, options.priority, options.escalate) == ("general", "low", False)
        assert options.request_id == f"{options.sequence}:{options.position}"


def test_the_names_are_those_of_file_model_and_row_alone() -> None:
    names = []
    for model in ("m@1", "m@1", "m@2"):
        producer = FakeProducer()
        offered(producer, model=model)
        names.append({options.request_id for options in producer.options})
    assert names[0] == names[1]
    assert names[0].isdisjoint(names[2])


def test_rows_without_a_truth_or_a_context_are_left_out() -> None:
    producer = FakeProducer()
    errors = dict.fromkeys(range(0, ROWS, 2), ("null_vector", ""))
    offered(producer, errors=errors, known=np.arange(ROWS) < 1_000)
    assert all(options.position % 2 and options.position < 1_000 for options in producer.options)
    assert offered(FakeProducer(), known=np.zeros(ROWS, bool)).sampled == 0


def test_a_truth_of_another_norm_is_not_reported() -> None:
    vectors = 2 * block().vectors
    reporter = offered(FakeProducer(), vectors=vectors)
    assert reporter.lost == {"bad_truth": reporter.sampled}


def test_a_shadow_that_is_away_keeps_the_room_of_live_samples_and_the_file_goes_on() -> None:
    producer = FakeProducer()
    reporter = offered(producer, waiting=2_000)
    assert producer.options == []
    assert reporter.lost == {"shadow_full": reporter.sampled}


@pytest.mark.parametrize("refusal", [QueueFull("full"), ServerUnavailable("away")])
def test_what_the_queue_does_not_take_is_lost_and_told(refusal: QueueError) -> None:
    producer = FakeProducer()
    producer.refusal = refusal
    reporter = offered(producer)
    assert (reporter.reported, reporter.lost) == (0, {refusal.code: reporter.sampled})


def test_a_row_that_was_sent_before_is_no_loss() -> None:
    producer = FakeProducer()
    producer.outcome = DuplicateRequest("again")
    reporter = offered(producer)
    assert reporter.reported == reporter.repeated == reporter.sampled
    assert len(producer.truths) == reporter.sampled  # whoever sent it may have died before its truth
