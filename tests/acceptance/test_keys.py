"""What a whole service leaves on its server: every key expires, or has a bound."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import redis
from command import Amn, address
from numpy.typing import NDArray

from producer import Options, Producer
from producer.messages import PRIORITIES

pytestmark = pytest.mark.timeout(180)

#: Keys without an expiry, and what bounds each.
BOUNDED = {
    r"requests(:high|:low)?": "the queue's limits, checked in the step that appends",
    r"fallback(:secondary)?": "the fallback limits, checked in the step that escalates",
    r"bytes:.*": "one integer for each of those streams",
    r"truths": "trimmed to 20,000",
    r"shadow": "trimmed at shadow_entries_max",
    r"dead": "trimmed at dead_entries_max",
    r"stats": "one field a counter",
    r"stages": "one field a stage, kind, level, outcome and bucket",
    r"drift:minutes": "trimmed with the minutes, which expire",
    r"drift:half:index": "capped at halves_max",
    r"rq:workers.*": "RQ's own: one entry a worker of jobs",
    r"rq:queues": "RQ's own: the names of its queues",
    r"rq:(finished|failed|canceled):.*": "RQ's own: jobs of a week, and a thousand cancelled ones",
    r"gate:.*": "one field a counter of the budget, or a fallback",
}


def test_every_key_of_a_service_expires_or_has_a_bound(
    service: Amn, tmp_path: Path, real_contexts: NDArray[np.float32]
) -> None:
    source = tmp_path / "in.npy"
    np.save(source, real_contexts)
    assert service("predict", source, "--out", tmp_path / "out.npy").code == 0
    url = address(service.folder)
    with Producer(url) as producer:
        options = [
            Options(priority=PRIORITIES[i % 3], lane="sci-fact", sequence="keys", position=i)
            for i in range(60)
        ]
        handles = producer.submit_many(real_contexts[:60], options=options)
        assert all(handle.result(60_000) for handle in handles)
        producer.submit(real_contexts[0]).cancel()
        client = redis.Redis.from_url(url)
        keys = [key.decode() for key in client.scan_iter(count=1000)]
        assert len(keys) > 8
        forever = [key for key in keys if client.ttl(key) == -1]
        client.close()
    ours = [re.fullmatch(r"amn:\{main\}:(.*)", key) for key in forever]
    names = {match.group(1) if match else key for key, match in zip(forever, ours, strict=True)}
    unbounded = {n for n in names if not any(re.fullmatch(p, n) for p in BOUNDED)}
    assert unbounded == set()
    # The others do expire: an id, a client's replies, a worker's presence.
    assert {"seen", "replies", "workers"} <= {
        key.split(":")[2] for key in set(keys) - set(forever) if key.startswith("amn:")
    }
