"""Writes down what this version of the queue leaves on a server: tests/golden/stored/NAME.json.

    python tests/golden/make_stored.py NAME

Run it in the checkout of a version, before a change of its keys or entries. The files are never edited:
every later version takes over a server that an earlier one has used (tests/contract/test_stored.py).
`1` was written by the version that had one stream of requests, `2` by the one that had three levels.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
GROUP = "workers"


def fill(url: str) -> None:
    """Requests in every state that lasts: waiting, leased, escalated, cancelled, dead."""
    from producer import Producer
    from producer.keys import Keys
    from producer.messages import Reply
    from producer.protocol import wire
    from producer.settings import ProducerSettings
    from workers.engine.entry import Outcome
    from workers.engine.outcomes import dead
    from workers.engine.queue import LeasedQueue
    from workers.settings import QueueSettings, WorkerSettings

    row = np.eye(768, dtype=np.float16)[0]
    settings = WorkerSettings(
        kind="amn", producer=ProducerSettings(url=url), queue=QueueSettings(batch_max=12, block_ms=10)
    )
    queue = LeasedQueue(settings, Keys().requests, "gone")
    queue.ensure_group()
    with Producer(url) as producer:
        for name in ("escalated", "provisional", "dead", "leased"):
            producer.submit(np.tile(row, (5, 1)), request_id=name, provisional=name == "provisional")
        outcomes = []
        for entry in queue.lease():
            request = wire.decode_request(entry.fields[b"request"])
            op = {"escalated": "escalate", "provisional": "both"}.get(request.id, "")
            reply = Reply(
                id=request.id, vector=row.astype(np.float32), confidence=0.5, margin=0.25, provisional=True
            )
            if op:
                more: dict[str, Any] = {"reply_to": request.reply_to, "payload": wire.encode_reply(reply)}
                outcomes.append(Outcome(entry=entry, op=op, counters="escalated", **more))
            elif request.id == "dead":
                outcomes.append(dead(entry, request, "test", "kept"))
        assert queue.finish(outcomes) == [b"ok"] * 3
        for name in ("waits", "cancelled", "waits-too"):
            producer.submit(np.tile(row, (5, 1)), request_id=name)
        assert producer.cancel("cancelled")
        dump_to(url, sys.argv[1])
    queue.close()


def dump_to(url: str, name: str) -> None:
    import redis

    client = redis.Redis.from_url(url)
    path = HERE / "stored" / f"{name}.json"
    if path.exists():
        raise SystemExit(f"{path} exists; it is never made again")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dump(client), indent=1) + "\n", "utf-8")


def dump(client: Any) -> dict[str, Any]:
    """Every key: what it is and holds, bytes as base64; of streams also who has leased what."""
    keys: dict[str, Any] = {}
    for key in sorted(client.scan_iter(count=1000)):
        name, kind = key.decode(), client.type(key).decode()
        if kind == "string":
            keys[name] = {"string": text(client.get(key))}
        elif kind == "hash":
            keys[name] = {"hash": {k.decode(): text(v) for k, v in sorted(client.hgetall(key).items())}}
        elif kind == "stream":
            entries = [
                [entry.decode(), {k.decode(): text(v) for k, v in fields.items()}]
                for entry, fields in client.xrange(key)
            ]
            keys[name] = {"stream": entries, "leases": leases(client, key)}
        else:
            raise SystemExit(f"{name} is a {kind}; say here how to write it down")
    return keys


def leases(client: Any, key: bytes) -> list[list[Any]]:
    if not client.xinfo_groups(key):
        return []
    rows = client.xpending_range(key, GROUP, "-", "+", 1000)
    return [[r["message_id"].decode(), r["consumer"].decode(), r["times_delivered"]] for r in rows]


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def load(client: Any, keys: dict[str, Any]) -> None:
    """Puts it all onto a server; leases are made to look an hour old, as after a crash."""
    for name, held in keys.items():
        if "string" in held:
            client.set(name, base64.b64decode(held["string"]))
        elif "hash" in held:
            client.hset(name, mapping={k: base64.b64decode(v) for k, v in held["hash"].items()})
        else:
            for entry, fields in held["stream"]:
                client.xadd(name, {k: base64.b64decode(v) for k, v in fields.items()}, id=entry)
            for entry, consumer, deliveries in held["leases"]:
                client.xgroup_create(name, GROUP, id=entry, mkstream=True)
                how = {"idle": 3_600_000, "retrycount": deliveries, "force": True, "justid": True}
                client.xclaim(name, GROUP, consumer, 0, [entry], **how)


if __name__ == "__main__":
    from servers import Server

    server = Server("valkey").start()
    try:
        fill(server.url)
    finally:
        server.close()
