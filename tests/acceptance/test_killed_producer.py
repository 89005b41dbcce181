"""A producer that dies with requests under way: they end all the same, once, and nothing stays for good."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import redis
from command import ROOT, SAMPLE, Amn, address
from waiting import wait_until

from producer.keys import Keys
from producer.messages import Reply
from producer.protocol import wire

pytestmark = pytest.mark.timeout(180)
KEYS = Keys()
IN = ("accepted:high", "accepted:normal", "accepted:low")
OUT = ("answered", "failed", "dead", "cancelled")
PROGRAM = """
import sys
import numpy as np
from producer import Options, Producer, ProducerSettings
rows = np.load(sys.argv[2])["vectors"][:104].astype("f4")
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
contexts = [rows[i : i + 5] for i in range(100)]
with Producer(settings=ProducerSettings(url=sys.argv[1], client="doomed")) as producer:
    turn = 0
    while True:
        options = [Options(request_id=f"doomed-{turn}-{i}") for i in range(100)]
        producer.submit_many(contexts, options=options, block=True)
        turn += 1
        print(turn, flush=True)
"""


def test_the_requests_of_a_killed_producer_end_once_by_the_servers_own_counters(service: Amn) -> None:
    url = address(service.folder)
    with redis.Redis.from_url(url) as admin:

        def count(names: tuple[str, ...]) -> int:
            return sum(int(admin.hget(KEYS.stats, name) or 0) for name in names)

        def waiting() -> int:
            return sum(admin.xlen(stream) for stream in KEYS.places)

        wait_until(lambda: not waiting())
        went_in, came_out = count(IN), count(OUT)
        doomed = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, str(SAMPLE)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert doomed.stdout is not None
        for _ in range(5):
            assert doomed.stdout.readline().strip()
        doomed.kill()  # in the midst of its sending, with answers under way
        doomed.wait()
        doomed.stdout.close()
        wait_until(lambda: not waiting())
        assert count(IN) - went_in >= 500
        assert count(OUT) - came_out == count(IN) - went_in
        (stream,) = admin.scan_iter(match=KEYS.replies_prefix.replace("{", "\\{") + "doomed.*", count=5000)
        finals: Counter[str] = Counter()
        for _, fields in admin.xrange(stream):
            if b"reply" in fields:
                reply = wire.decode_reply(fields[b"reply"])
                finals[reply.id] += not (isinstance(reply, Reply) and reply.provisional)
        assert max(finals.values()) == 1
        assert 0 < admin.pttl(stream) <= 600_000  # unread answers go by themselves
