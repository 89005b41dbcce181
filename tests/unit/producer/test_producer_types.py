"""What editors and type checkers know of a producer, and what its values look like in a shell."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_type_hints

import numpy as np

import producer
from producer import BatchReply, Options, ProducerSettings, QueueFull, Reply
from producer.options import OptionFields
from producer.session.handle import BatchHandle, Handle
from producer.session.requests import prepare, prepare_batch

ROOT = Path(__file__).resolve().parents[3]
CONTEXT = np.eye(5, 768, dtype=np.float32)

RIGHT = """
from typing import Any, assert_type

from producer import AsyncProducer, BatchReply, Handle, Options, Producer, Reply, __version__

version: str = __version__


def ask(producer: Producer, context: Any) -> Handle:
    assert_type(producer.predict(context, timeout_ms=50.0, block=True, priority="high"), Reply)
    assert_type(producer.predict_batch([context], options=Options(lane="narrative")), BatchReply)
    return producer.submit(context, lane="narrative", tokens=12, deadline_ms=None)


async def ask_async(producer: AsyncProducer, context: Any) -> Reply:
    handle = await producer.submit_batch([context], normalize=True)
    assert_type(await handle.result(), BatchReply)
    return await producer.predict(context, lane="narrative", escalate=True)
"""
WRONG = """
from typing import Any

from producer import AsyncProducer, Producer


async def ask(producer: Producer, others: AsyncProducer, context: Any) -> None:
    producer.submit(context, lan="x")
    producer.predict(context, tokens="x")
    producer.submit_batch([context], priority="urgent")
    producer.predict_batch([context], timeout=1)
    await others.submit(context, lan="x")
    await others.predict(context, blocking=True)
    await others.submit_batch([context], position=1.5)
    await others.predict_batch([context], lan="x")
"""


def test_the_strict_type_checker_passes_right_calls_and_refuses_each_wrong_field(tmp_path: Path):
    (tmp_path / "right.py").write_text(RIGHT, "utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    # In the checkout, where what `make lint` kept spares a look at all of NumPy's types.
    ended = subprocess.run(
        [*command, str(tmp_path / "right.py"), str(tmp_path / "wrong.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line.split(":")[:2] for line in ended.stdout.splitlines() if ": error: " in line]
    found = [(Path(file).name, int(number)) for file, number in errors]
    assert found == [("wrong.py", number) for number in range(8, 16)], ended.stdout + ended.stderr


def test_the_keyword_arguments_are_the_fields_of_options():
    assert get_type_hints(OptionFields) == get_type_hints(Options)


def test_the_arguments_of_predict_are_those_of_submit():
    for face in producer.Producer, producer.AsyncProducer:
        for one, other in ("predict", "submit"), ("predict_batch", "submit_batch"):
            fields = get_type_hints(getattr(face, one))["fields"].__args__[0]
            arguments = inspect.signature(getattr(face, other)).parameters
            named = {name for name, about in arguments.items() if about.kind is about.KEYWORD_ONLY}
            assert get_type_hints(fields).keys() == named | get_type_hints(Options).keys()


def test_a_reply_is_one_line_without_its_vector():
    reply = Reply(id="a" * 22, vector=CONTEXT[0], confidence=0.87312345, margin=0.0, model="amn@123456789012")
    assert repr(reply) == f"Reply(id='{'a' * 22}', served_by='amn', confidence=0.8731, margin=0.0)"
    shed = repr(reply.shed_for("budget")).removeprefix(repr(reply)[:-1])
    assert shed == ", shed='budget')"


def test_a_reply_to_a_batch_is_one_line_with_the_numbers_of_its_rows():
    rows = np.zeros(3, np.float32)
    flags = np.array([0, 1, 1], np.uint8)
    reply = BatchReply(
        id="b",
        vectors=CONTEXT[:3],
        confidences=rows,
        margins=rows,
        gains=rows,
        rules=("long_context",),
        fired=flags,
        sheds=("batch",),
        shed=flags,
    )
    assert repr(reply) == "BatchReply(id='b', served_by='amn', rows=3, fired=2, shed=2)"


def test_a_handle_says_what_it_waits_for():
    outgoing = prepare(CONTEXT, Options(request_id="c", provisional=True), "client", ProducerSettings())
    handle, reply = Handle(None, outgoing), Reply(id="c", vector=CONTEXT[0], confidence=1.0, margin=1.0)
    assert repr(handle) == "<Handle c: waiting>"
    handle.settle(Reply(id="c", vector=CONTEXT[0], confidence=1.0, margin=1.0, provisional=True))
    assert repr(handle) == "<Handle c: provisional answer, waiting for the final one>"
    handle.settle(reply)
    handle.latency_ms = 1.2345
    assert repr(handle) == "<Handle c: answered by amn after 1.23 ms>"


def test_a_handle_of_a_batch_names_its_contexts_and_its_failure():
    outgoing = prepare_batch(CONTEXT[None], Options(request_id="d"), "client", ProducerSettings())
    handle = BatchHandle(None, outgoing)
    handle.settle(QueueFull("full"))
    assert repr(handle) == "<BatchHandle d of 1 contexts: failed: queue_full>"


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert producer.__version__ == project["version"]
