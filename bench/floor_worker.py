"""The worker of bench/floor.py: read, compute, write, and nothing else.

`python -m bench.floor_worker VARIANT STREAM BANK`, the server's address in REDIS_URL. No lease, no checks, no
script, no policy: what a loop of this kind could not do without. It ends when the server or its starter does.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import ConnectionError as Gone

from producer import ProducerSettings
from producer.transport.connection import connect
from producer.transport.link import Link, Word
from workers.settings import artifacts_root

COUNT = 64
BLOCK_MS = 500
CONTEXT = (5, 768)
ANSWERS = "answers"
VARIANTS = ("no model", "model", "model and gate")


def main(variant: str, stream: str, bank: Path) -> None:
    """Says `ready` and answers what comes until the server goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the starter, which ends the server
    answer, starter = _answering(variant, bank), os.getppid()
    link = Link(connect(ProducerSettings(url=os.environ["REDIS_URL"]), block_ms=BLOCK_MS))
    link.call("XGROUP", "CREATE", stream, "workers", "0", "MKSTREAM")
    buffer = np.zeros((COUNT, *CONTEXT), np.float32)
    answer(buffer[:1])
    gc.collect()
    gc.freeze()  # as our workers do
    gc.set_threshold(100_000)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        while os.getppid() == starter:
            _turn(link, stream, buffer, answer)
    except Gone:  # the server was stopped, which is how this ends
        return


def _turn(link: Link, stream: str, buffer: NDArray[np.float32], answer: _Answer) -> None:
    """One read, one computation, one write."""
    words: tuple[Word, ...] = ("XREADGROUP", "GROUP", "workers", "w", "COUNT", COUNT, "BLOCK", BLOCK_MS)
    found = link.call(*words, "STREAMS", stream, ">")
    if not found:
        return
    rows = entries(found)
    for row, (_, fields) in zip(buffer, rows, strict=False):
        row[:] = np.frombuffer(fields[1], "<f4").reshape(CONTEXT)
    vectors = answer(buffer[: len(rows)])
    ids = [entry for entry, _ in rows]
    answers = [
        ("XADD", ANSWERS, "*", "number", fields[3], "vector", vector.tobytes())
        for vector, (_, fields) in zip(vectors, rows, strict=True)
    ]
    for said in link.each([*answers, ("XACK", stream, "workers", *ids), ("XDEL", stream, *ids)]):
        if isinstance(said, Exception):
            raise said


_Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _answering(variant: str, bank: Path) -> _Answer:
    """Returns the function that makes vectors (n, 768) of contexts (n, 5, 768)."""
    if variant == "no model":
        return lambda contexts: contexts[:, -1]
    import torch

    from amn.predictor import Predictor

    torch.set_num_threads(1)
    predictor = Predictor.open(artifacts_root() / "production_model", bank)
    if variant == "model":
        return predictor.forward
    gate = predictor.bank
    assert gate is not None

    def gated(contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = predictor.forward(contexts)
        gate.top2(vectors)
        return vectors

    return gated


def entries(found: object) -> list[tuple[bytes, list[bytes]]]:
    """The entries of a read of one stream, whichever form the driver gives them."""
    streams = found.items() if isinstance(found, dict) else found
    return [row for _, rows in streams for row in rows]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
