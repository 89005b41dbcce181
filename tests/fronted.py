"""A process of `amn gateway`, and the bodies that its clients send."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from served import listening

from producer.keys import Keys

INFER = "/v2/models/amn/infer"
LENGTH = "Inference-Header-Content-Length"
DOCUMENT: dict[str, Any] = json.loads(Path("ops/gateway/openapi.json").read_text("utf-8"))


@contextmanager
def gateway(url: str, token: str = "", *words: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    with listening("gateway", *words, REDIS_URL=url, AMN_GATEWAY_TOKEN=token) as (client, process):
        if token:
            client.headers["authorization"] = f"Bearer {token}"
        yield client, process


def v2(contexts: NDArray[Any], *, binary: bool = False, **more: Any) -> tuple[bytes, dict[str, str]]:
    """The body of a request, and its headers."""
    kind = {"float32": "FP32", "float16": "FP16"}[contexts.dtype.name]
    tensor: dict[str, Any] = {"name": "context", "datatype": kind, "shape": list(contexts.shape)}
    if not binary:
        tensor["data"] = contexts.ravel().tolist()
        return json.dumps({"inputs": [tensor], **more}).encode(), {}
    tensor["parameters"] = {"binary_data_size": contexts.nbytes}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + contexts.tobytes(), {LENGTH: str(len(head))}


def outputs(answer: httpx.Response) -> dict[str, Any]:
    """The outputs by name: arrays, and lists of texts."""
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    place, found = length, {}
    for one in json.loads(answer.content[:length])["outputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = one["data"]
            found[one["name"]] = np.float32(values) if one["datatype"] == "FP32" else values
        elif one["datatype"] == "FP32":
            found[one["name"]] = np.frombuffer(answer.content[place : place + size], "<f4")
        else:
            found[one["name"]] = _texts(answer.content[place : place + size])
        if one["datatype"] == "FP32":
            found[one["name"]] = found[one["name"]].reshape(one["shape"])
        place += size or 0
    return found


def _texts(data: bytes) -> list[str]:
    found = []
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return found


def say_alive(admin: Any, name: str = "echo", queue: str = "main") -> None:
    """Writes the presence of a worker, as its keeper would."""
    said = {"kind": "amn", "lease_ms": 3_000, "seen_at_ms": int(time.time() * 1000), "model": "amn@test"}
    admin.hset(Keys(queue).worker(name), mapping=said)
    admin.pexpire(Keys(queue).worker(name), 9_000)


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
