"""Ten thousand hostile requests, and each is answered with a typed error; two thousand of them in CI."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgpack
import numpy as np
import pytest
from echo import EchoWorker
from fronted import INFER, LENGTH, gateway, resident_kb, v2
from test_batches import service
from waiting import wait_until

#: `AMN_HOSTILE_REQUESTS=10000` is the whole run.
REQUESTS = int(os.environ.get("AMN_HOSTILE_REQUESTS") or 2_000)
Made = tuple[bytes, bytes]
CONTEXT = np.float32([[1.0, *[0.0] * 767]] * 5)
STATUSES = {400, 403, 404, 405, 408, 409, 413, 415, 421, 431, 504}
ODD = [None, True, -1, 0, 1.5, 2**63, 10**40, float("nan"), "x", "\ud800", "x" * 9_000, [], {}, [[[]]]]


def said(head: dict[str, Any], body: bytes, path: str = INFER, method: str = "POST") -> Made:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n", body


def sized(body: bytes, **more: Any) -> Made:
    return said({"Host": "localhost", "Content-Length": len(body), **more}, body)


def wrong_field(chance: random.Random) -> Made:
    """A v2 request of which one field holds something else, or is missing."""
    message: Any = json.loads(v2(CONTEXT, parameters={"lane": "general"}, outputs=[{"name": "vector"}])[0])
    places = [(message, name) for name in message]
    places += [(message["inputs"][0], name) for name in message["inputs"][0]]
    places += [
        (message["parameters"], name) for name in ("lane", "tokens", "deadline_ms", "priority", "timeout")
    ]
    holder, name = chance.choice(places)
    holder[name] = chance.choice(ODD)
    # One that is none of the contract, so that no change by chance makes a good request of it.
    message["parameters"] = message["parameters"] if isinstance(message["parameters"], dict) else {}
    message["parameters"]["misspelt"] = 1
    return sized(json.dumps(message).encode())


def wrong_shape(chance: random.Random) -> Made:
    shape = [chance.choice([0, 1, 4, 5, 768, -5, 2**40, 10**30]) for _ in range(chance.randrange(5))]
    tensor = {"name": "context", "datatype": "FP32", "shape": shape, "data": [0.5] * chance.randrange(99)}
    return sized(json.dumps({"inputs": [tensor]}).encode())


def truncated_tensor(chance: random.Random) -> Made:
    body, headers = v2(CONTEXT, binary=True)
    cut = chance.randrange(int(headers[LENGTH]) + 1, len(body))
    return sized(body[:cut] if chance.random() < 0.5 else body + bytes(chance.randrange(1, 999)), **headers)


def lying_header(chance: random.Random) -> Made:
    body, _ = v2(CONTEXT, binary=True)
    return sized(
        body, **{LENGTH: chance.choice([0, 1, len(body), len(body) + 1, -1, 10**30, "x", "1e3", "²"])}
    )


def noise(chance: random.Random) -> Made:
    return sized(chance.randbytes(chance.randrange(2_000)))


def noise_in_msgpack(chance: random.Random) -> Made:
    body = msgpack.packb({"version": 1, "context": CONTEXT.tobytes(), "lane": 5})
    place = chance.randrange(len(body))
    changed = body[:place] + chance.randbytes(3) + body[place + 3 :]
    head = {"Host": "localhost", "Content-Length": len(changed), "Content-Type": "application/msgpack"}
    return said(head, changed, chance.choice(["/predict", "/truth"]))


def not_http(chance: random.Random) -> Made:
    return chance.randbytes(chance.randrange(8, 400)) + b"\r\n\r\n", b""


def gigantic(chance: random.Random) -> Made:
    length = chance.choice([2**63, 10**40, 9 * 1024**2, "-5", "5, 6", "0x10"])
    body = bytes(9 * 1024**2) if length == 9 * 1024**2 else b"{}"
    return said({"Host": "localhost", "Content-Length": length}, body)


def smuggled(chance: random.Random) -> Made:
    both = {"Content-Length": 4, "Transfer-Encoding": chance.choice(["chunked", "gzip", "chunked, identity"])}
    return said({"Host": "localhost", **both}, b"5\r\nhello\r\n0\r\n\r\n")


def bad_chunks(chance: random.Random) -> Made:
    size = chance.choice([b"zz", b"-1", b"f" * 40, b"5"])
    return said({"Host": "localhost", "Transfer-Encoding": "chunked"}, size + b"\r\nhelloX\r\n")


def many_headers(chance: random.Random) -> Made:
    return said({"Host": "localhost", **{f"X-{n}": "y" * 90 for n in range(chance.randrange(600, 900))}}, b"")


def elsewhere(chance: random.Random) -> Made:
    path = chance.choice(
        ["/", "//", "/v2/models/x", "/v2/../../etc/passwd", "/%00", "/%ff", "*", "http://x/y"]
    )
    return said(
        {"Host": chance.choice(["localhost", "evil", ""])}, b"", path, chance.choice(["GET", "POST", "X"])
    )


def nested(chance: random.Random) -> Made:
    return sized(chance.choice([b"[", b'{"a":', b'[{"inputs":']) * chance.randrange(1, 50_000))


KINDS: list[Callable[[random.Random], Made]] = [
    *(wrong_field, wrong_shape, truncated_tensor, lying_header, noise, noise_in_msgpack, not_http, gigantic),
    *(smuggled, bad_chunks, many_headers, elsewhere, nested),
]


def exchanged(address: tuple[str, int], made: Made) -> tuple[int, dict[str, Any]]:
    """Sends a request on a connection of its own, to its end; returns the answer's status and its body."""
    with socket.create_connection(address, timeout=20) as opened:
        found = b""
        try:
            for part in made:
                opened.sendall(part)
            opened.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before its end
        try:
            while part := opened.recv(65_536):
                found += part
        except ConnectionResetError:
            pass
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    head, _, body = found.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    return (int(status[1]), json.loads(body)) if status else (0, {})


def test_hostile_requests_end_in_typed_errors_and_harm_nobody(real_server: Any) -> None:
    chance, seen = random.Random(7), Counter[tuple[str, int]]()
    with EchoWorker(real_server.url) as worker, gateway(real_server.url) as (client, process):
        address = client.base_url.host, client.base_url.port or 0
        before_kb = 0
        for number in range(REQUESTS):
            kind = KINDS[number % len(KINDS)]
            status, body = exchanged(address, kind(chance))
            seen[kind.__name__, status] += 1
            if status:
                assert status in STATUSES, (kind.__name__, status, body)
                assert {"error", "code", "retryable"} <= set(body), (kind.__name__, status, body)
            if number == REQUESTS // 4:
                before_kb = resident_kb(process.pid)
        assert resident_kb(process.pid) < before_kb + 24 * 1024
        body, headers = v2(CONTEXT, binary=True, parameters={"request_id": "good"})
        assert client.post(INFER, content=body, headers=headers).status_code == 200
        assert worker.seen == ["good"]
        assert client.get("/metrics").text.count('status="500"') == 0
        assert process.poll() is None
    # An answer may be lost where the rest of a request, which nobody reads, meets a closed connection.
    assert sum(count for (_, status), count in seen.items() if not status) < REQUESTS / 20, seen


@pytest.mark.slow
def test_what_clients_took_who_read_no_answer_is_given_back(real_server: Any) -> None:
    many, _ = v2(np.stack([CONTEXT] * 80))
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(many)}\r\n\r\n"
    with service(real_server.url), gateway(real_server.url) as (client, process), ExitStack() as opened:
        body, headers = v2(CONTEXT, binary=True)
        assert client.post(INFER, content=body, headers=headers).status_code == 200
        before_kb = resident_kb(process.pid)
        address = client.base_url.host, client.base_url.port
        slow = [opened.enter_context(socket.create_connection(address)) for _ in range(100)]
        for one in slow:
            one.sendall(head.encode() + many[:-1])
        wait_until(lambda: resident_kb(process.pid) > before_kb + 96 * 1024)
        for one in slow:
            one.sendall(many[-1:])
        opened.close()
        wait_until(lambda: resident_kb(process.pid) < before_kb + 48 * 1024, 30)
        assert client.post(INFER, content=body, headers=headers).status_code == 200
