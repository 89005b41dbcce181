"""A bare loop, which is no queue: read, compute, write. What a queue takes longer than this is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from bench.peers.work import URL, in_chunks, predictor, work_of

REQUIREMENTS: tuple[str, ...] = ()
NOTE = "no queue: XADD, a read of what is there, model and gate, one write; no lease, check or limit"
COMMAND = ("-m", "bench.peers.bare_loop")
_STREAM, _ANSWERS = "bare:contexts", "bare:answers"
_client: Any = redis.Redis.from_url(URL)


def submit(contexts: Sequence[bytes]) -> list[bytes]:
    ids: list[bytes] = []
    for some in in_chunks(contexts):
        with _client.pipeline(transaction=False) as pipe:
            for context in some:
                pipe.xadd(_STREAM, {"context": context})
            ids += pipe.execute()
    return ids


def finished(client: redis.Redis) -> int:
    return int(client.hlen(_ANSWERS))  # type: ignore[arg-type]


def result(job: bytes) -> bytes:
    return bytes(_client.hget(_ANSWERS, job))


def main() -> None:
    """Answers until it is killed."""
    predictor()
    _client.xgroup_create(_STREAM, "workers", id="0", mkstream=True)
    while True:
        for _, rows in _client.xreadgroup("workers", "w", {_STREAM: ">"}, count=64, block=500) or ():
            with _client.pipeline(transaction=False) as pipe:
                pipe.hset(_ANSWERS, mapping={entry: work_of(fields[b"context"]) for entry, fields in rows})
                pipe.xack(_STREAM, "workers", *(entry for entry, _ in rows))
                pipe.xdel(_STREAM, *(entry for entry, _ in rows))
                pipe.execute()


if __name__ == "__main__":
    main()
