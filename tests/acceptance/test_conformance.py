"""The examination of clients: the reference passes, and a wrong client fails where it is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import selectors
from needs import GROUPS
from servers import Server
from topologies.service import Service
from wrong_client import FAULTS

from ops.commands.acl import acl_line
from producer.conformance import replies, requests
from producer.keys import Keys
from producer.settings import ProducerSettings

ROOT = Path(__file__).parents[2]
POINTS = (*requests.POINTS, *replies.POINTS)
#: Each takes half a minute on a machine that has little else to do.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OWN, PASSWORD = "examined", "sixteen-or-more-letters"


@contextmanager
def served(kind: str) -> Iterator[Server]:
    server = Server(kind, tcp=True).start()
    try:
        with Service(ProducerSettings(url=server.tcp_url)), server.client() as admin:
            admin.hset(Keys().worker("echo"), mapping={"kind": "amn"})  # as a worker says that it lives
            yield server
    finally:
        server.close()


def examined(
    server: Server, program: Sequence[str], queue: str = OWN, **environment: str
) -> tuple[int, dict[str, str], str]:
    """The exit code, each point with its verdict, and all that was printed."""
    command = [sys.executable, "-m", "producer.conformance", "--own-queue", queue, "--", *program]
    environment = {**os.environ, "REDIS_URL": server.tcp_url, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    verdicts = {}
    for line in done.stdout.splitlines():
        if line.startswith(("passed  ", "FAILED  ", "left out")):
            verdicts[line[10:]] = line[:8].strip()
    assert queue not in str(server.client().keys("*")), "the examination left keys behind"
    return done.returncode, verdicts, done.stdout + done.stderr


def ours(client: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / client)]


@pytest.mark.needs("redis-server")
def test_our_client_passes_in_all_points_with_a_client_s_rights() -> None:
    """On Redis: on Valkey each point is passed below, and the client for Node.js has these rights there."""
    passes_in_all_points("redis", ours("reference_client.py"))


@pytest.mark.needs("node")
def test_the_client_for_node_passes_in_all_points_with_a_client_s_rights() -> None:
    group: Any = GROUPS["node"]
    passes_in_all_points("valkey", [group.program(), str(ROOT / "examples" / "node" / "conformance.mjs")])


def passes_in_all_points(kind: str, program: Sequence[str]) -> None:
    names = {"queues": ["main", OWN], "user": "team-a", "client": "team-a"}
    with served(kind) as server, server.client() as admin:
        line = acl_line("canceller", password=PASSWORD, **names)
        admin.execute_command("ACL", "SETUSER", "team-a", *selectors(line)[1:])
        admin.acl_log_reset()
        url = f"redis://team-a:{PASSWORD}@127.0.0.1:{server.port}/0"
        code, verdicts, told = examined(server, program, AMN_CLIENT_URL=url, AMN_CLIENT="team-a")
        assert not [row for row in admin.acl_log() if "setinfo" not in str(row)]
    assert set(verdicts.values()) == {"passed"}, told
    assert len(verdicts) == len(POINTS)
    assert code == 0
    assert PASSWORD not in told


def test_each_point_is_failed_by_a_client_with_its_fault_and_passed_by_one_without() -> None:
    faults = list(FAULTS)
    assert len(POINTS) == len(faults) == len(set(FAULTS.values()))
    halves = {"first": faults[::2], "second": faults[1::2]}  # each fails the other half of the points
    with served("valkey") as server, ThreadPoolExecutor() as pool:
        programs = {half: [*ours("wrong_client.py"), *some] for half, some in halves.items()}
        found = pool.map(lambda half: examined(server, programs[half], half), halves)
    for some, (code, verdicts, told) in zip(halves.values(), found, strict=True):
        assert (code, len(verdicts)) == (1, len(POINTS)), told
        failed = {sentence for sentence, verdict in verdicts.items() if verdict == "FAILED"}
        beginnings = [FAULTS[fault] for fault in some]
        for beginning in beginnings:
            assert [one for one in failed if one.startswith(beginning)], f"{beginning} did not fail: {told}"
        assert (len(failed), "left out" in verdicts.values()) == (len(beginnings), False), told
