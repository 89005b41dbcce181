"""The client for Node.js before a running service: its answers are a Producer's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ROOT, Amn, address
from needs import GROUPS

from producer import Producer, Windows

pytestmark = pytest.mark.needs("node")
#: Asks for the contexts of a file, 32 at a time; writes what it got, and a line for each answer.
ASK = f"""
import {{ readFile, writeFile }} from 'node:fs/promises';
import {{ Client }} from '{ROOT}/examples/node/client.mjs';
const contexts = new Float32Array(new Uint8Array(await readFile('contexts.f4')).buffer);
const client = await Client.connect();
const found = [];
const take = async (index) => {{
  found[index] = await client.predict(contexts.subarray(index * 3840, (index + 1) * 3840));
  console.log(index);
}};
let next = 0;
const asker = async () => {{ while (next < contexts.length / 3840) await take(next++); }};
await Promise.all(Array.from({{ length: 32 }}, asker));
const batch = await client.predictBatch(contexts.subarray(0, 64 * 3840));
const rows = new Float32Array(12 * 768); // eight contexts that slide over twelve vectors
rows.set(contexts.subarray(0, 3840));
for (let i = 1; i < 8; i++) rows.set(contexts.subarray(i * 3840 + 4 * 768, (i + 1) * 3840), (4 + i) * 768);
const ends = Uint16Array.from({{ length: 8 }}, (_, i) => 4 + i);
const shared = await client.predictBatch(rows, {{ ends }});
await writeFile('vectors.f4', Buffer.concat([...found.map((one) => one.vector), batch.vectors, shared.vectors]
  .map(({{ buffer }}) => Buffer.from(buffer))));
const scores = found.map((one) => [one.served_by, one.confidence, one.margin]);
await writeFile('scores.json', JSON.stringify(scores));
await client.close();
"""


def asked(service: Amn, folder: Path, contexts: Any) -> subprocess.Popen[str]:
    (folder / "contexts.f4").write_bytes(contexts.tobytes())
    group: Any = GROUPS["node"]
    return subprocess.Popen(
        [group.program(), "--input-type=module", "--eval", ASK],
        cwd=folder,
        env={**os.environ, "REDIS_URL": address(service.folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_it_gets_bit_for_bit_what_a_producer_gets_though_the_worker_is_killed(
    service: Amn, real_contexts: Any, tmp_path: Path
) -> None:
    [pid] = [
        one["pid"] for one in json.loads(service("doctor", "--json").out)["workers"] if one["kind"] == "amn"
    ]
    with asked(service, tmp_path, real_contexts) as process:
        for _ in range(50):
            process.stdout.readline()  # type: ignore[union-attr]
        os.kill(pid, signal.SIGKILL)
        out = process.stdout.read()  # type: ignore[union-attr]
    assert (process.returncode, len(out.split())) == (0, 250)
    vectors = np.fromfile(tmp_path / "vectors.f4", "<f4").reshape(-1, 768)
    scores = json.loads((tmp_path / "scores.json").read_text())
    with Producer(address(service.folder)) as producer:
        compared = 0
        for index, reply in producer.predict_many(real_contexts):
            if scores[index][0] == reply.served_by == "amn":  # a fallback answers some, within its budget
                assert scores[index][1:] == [reply.confidence, reply.margin]
                assert np.array_equal(vectors[index], reply.vector)
                compared += 1
        assert compared >= 200
        assert np.array_equal(vectors[300:364], producer.predict_batch(real_contexts[:64]).vectors)
        rows = np.vstack([real_contexts[0], real_contexts[1:8, 4]])
        windows = Windows(vectors=rows, ends=np.arange(4, 12))
        assert np.array_equal(vectors[364:], producer.predict_batch(windows).vectors)
