"""The gateway before a running service, asked by clients that are not ours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from command import ROOT, Amn, address
from documents import blocks, environment
from fronted import INFER, gateway, v2
from needs import GROUPS
from waiting import wait_until

from producer import Producer

DOCUMENT = "docs/gateway.md"
EXAMPLE = ROOT / "examples" / "gateway.sh"
#: Asks for the contexts of the file one by one and all at once, in JSON and in binary.
TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

contexts = np.load("contexts.npy")
client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("amn")
assert client.get_model_metadata("amn")["inputs"][0]["shape"] == [-1, 5, 768]
found = {}
for array, name in ((contexts, "batch"), *((one, f"lone{n}") for n, one in enumerate(contexts[:4]))):
    for binary in (True, False):
        for kind in ("FP32", "FP16") if binary else ("FP32",):
            tensor = triton.InferInput("context", list(array.shape), kind)
            half = array.astype("f2") if kind == "FP16" else array
            tensor.set_data_from_numpy(half, binary_data=binary)
            names = ("vector", "confidence", "margin", "served_by")
            wanted = [triton.InferRequestedOutput(one, binary_data=binary) for one in names]
            answer = client.infer("amn", [tensor], outputs=wanted, priority=1, parameters={"lane": "general"})
            served_by = str(answer.as_numpy("served_by")[0]).strip("b'")
            for one in names[:3]:
                found[f"{name}/{kind}/{binary}/{one}/{served_by}"] = answer.as_numpy(one)
try:
    client.infer("amn", [tensor], parameters={"lane": "nope"})
except triton.InferenceServerException as error:
    assert error.status() == "400" and "nope" in error.message(), error
else:
    raise SystemExit("an unknown lane was taken")
np.savez("found.npz", **found)
"""


@pytest.fixture(scope="module")
def client(service: Amn) -> Iterator[httpx.Client]:
    with gateway(address(service.folder)) as (client, _):
        yield client


@pytest.mark.needs("triton")
def test_tritons_client_gets_bit_for_bit_what_a_producer_gets(
    service: Amn, client: httpx.Client, real_contexts: Any, tmp_path: Path
) -> None:
    with Producer(address(service.folder)) as producer:
        contexts = real_contexts[:8]
        np.save(tmp_path / "contexts.npy", contexts)
        (tmp_path / "ask.py").write_text(TRITON)
        host = f"{client.base_url.host}:{client.base_url.port}"
        python: Any = GROUPS["triton"]
        done = subprocess.run(
            [python.python(), "ask.py", host], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "found.npz") as found:
            assert len(found.files) == 45
            compared = 0
            for name in found.files:
                which, kind, _, output, served_by = name.split("/")
                array = contexts if which == "batch" else contexts[int(which.removeprefix("lone"))]
                array = array.astype("f2") if kind == "FP16" else array
                reply: Any = producer.predict_batch(array) if which == "batch" else producer.predict(array)
                if served_by == reply.served_by == "amn":  # a fallback answers some, within its budget
                    value = getattr(reply, output + "s" * (which == "batch"))
                    expected = np.float32([value]) if isinstance(value, float) else value
                    assert found[name].dtype == np.float32
                    assert np.array_equal(found[name], expected), name
                    compared += 1
            assert compared >= 30


def with_port(text: str, client: httpx.Client) -> str:
    assert "127.0.0.1:9466" in text
    return text.replace("127.0.0.1:9466", f"{client.base_url.host}:{client.base_url.port}")


def make_context(folder: Path) -> None:
    """The files that the example sends, made by its own lines."""
    (folder / "artifacts").symlink_to(ROOT / "artifacts")
    [code] = re.findall(r"<<'EOF'\n(.*?)\nEOF\n", EXAMPLE.read_text("utf-8"), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=30)


def test_the_example_with_curl_works_as_it_is_written(client: httpx.Client, tmp_path: Path) -> None:
    """As docs/gateway.md and examples/README.md call it."""
    (tmp_path / "artifacts").symlink_to(ROOT / "artifacts")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["bash", EXAMPLE],
        cwd=tmp_path,
        env={**environment(), "GATEWAY": str(client.base_url).rstrip("/")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ready, plain, infer, binary, truth, mistake, metrics = re.split(r"^# .*\n", done.stdout, flags=re.M)[1:]
    assert json.loads(ready)["workers"] == 1
    assert plain.startswith('{"request_id":')
    assert infer.startswith('{"model_name":"amn"')
    assert '"request_id":"row-17"' in binary
    assert "sampled" in json.loads(truth)
    assert "context" in json.loads(mistake)["error"]
    assert 'amn_gateway_requests_total{route="/predict",status="200"} ' in metrics
    [shown] = [line for block in blocks(DOCUMENT, "sh") for line in block.text.splitlines() if "curl" in line]
    words = ["bash", "-euc", with_port(shown, client)]
    asked = subprocess.run(
        words, cwd=tmp_path, env=environment(), capture_output=True, check=True, timeout=30
    )
    assert len(json.loads(asked.stdout)["vector"]) == 768


@pytest.mark.needs("triton")
def test_the_lines_with_tritons_client_in_the_documentation_work_as_they_are_written(
    client: httpx.Client, tmp_path: Path
) -> None:
    make_context(tmp_path)
    python: Any = GROUPS["triton"]
    [code] = [block.text for block in blocks(DOCUMENT, "python") if "tritonclient" in block.text]
    done = subprocess.run(
        [python.python(), "-c", with_port(code, client)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "(768,)" in done.stdout, done.stderr


@pytest.mark.needs("node")
def test_the_example_for_node_gets_what_a_producer_gets(
    service: Amn, client: httpx.Client, tmp_path: Path
) -> None:
    make_context(tmp_path)
    group: Any = GROUPS["node"]
    done = subprocess.run(
        [group.program(), EXAMPLE.with_suffix(".mjs")],
        cwd=tmp_path,
        env={**environment(), "GATEWAY": str(client.base_url).rstrip("/")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    size, first = done.stdout.split()
    with Producer(address(service.folder)) as producer:
        reply = producer.predict(np.fromfile(tmp_path / "context.bin", "<f4").reshape(5, 768))
    assert (int(size), float(first)) == (768, float(reply.vector[0]))


def test_a_killed_worker_is_seen_as_answers_that_take_longer(
    service: Amn, client: httpx.Client, real_contexts: Any
) -> None:
    found: list[httpx.Response] = []
    [pid] = [
        one["pid"] for one in json.loads(service("doctor", "--json").out)["workers"] if one["kind"] == "amn"
    ]

    def ask(part: int) -> None:
        for number in range(20):
            body, headers = v2(real_contexts[part * 20 + number], binary=True)
            found.append(client.post(INFER, content=body, headers=headers))

    askers = [threading.Thread(target=ask, args=(part,)) for part in range(8)]
    for one in askers:
        one.start()
    wait_until(lambda: len(found) > 20)
    os.kill(pid, signal.SIGKILL)
    for one in askers:
        one.join(60)
    assert [one.status_code for one in found] == [200] * 160
