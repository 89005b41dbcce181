"""A sender with the rights of an operator, and one on a cluster, which RQ does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from receiver import Receiver, running
from redis.crc import key_slot
from servers import KINDS, Server
from topology import Cluster, plain, wait_until

from ops.alerts import AlertSettings, apply
from ops.clock import server_now_ms
from ops.commands.acl import acl_line
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys

KEYS = Keys("main")
PASSWORD = "sixteen-or-more-letters"


@contextmanager
def sender(url: str, receiver: Receiver, log: Path) -> Iterator[None]:
    environment = {
        **os.environ,
        "REDIS_URL": url,
        "AMN_ALERTS_ALERTMANAGER_URL": receiver.url,
        "AMN_ALERTS_WEBHOOK_URL": receiver.url + "/hook",
        "AMN_ALERTS_WEBHOOK_KEY": "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=",
    }
    with log.open("wb") as out:
        command = [sys.executable, "-m", "ops.cli", "alerts", "run"]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        yield
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def fire(client: redis.Redis) -> None:
    client.set(leader_key(KEYS), "1")
    found = [Finding(rule="level", severity="page", state="firing", evaluations=1)]
    apply(client, KEYS, found, now_ms=server_now_ms(client), fence=1, settings=AlertSettings())


def told(receiver: Receiver) -> Callable[[], bool]:
    return lambda: {"/hook", "/api/v2/alerts"} <= {call.path for call in receiver.accepted()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rights_of_ops_are_enough_to_judge_and_to_send(
    kind: str, tmp_path: Path, amn: Callable[..., Any]
) -> None:
    lines = [acl_line("ops", queues=["main"], user="ops", password=PASSWORD)]
    lines += ["user default off", f"user admin on >{PASSWORD} ~* &* +@all"]
    (tmp_path / "users.acl").write_text("\n".join(lines) + "\n")
    server = Server(kind, tcp=True, arguments=("--aclfile", str(tmp_path / "users.acl"))).start()
    url = f"redis://ops:{PASSWORD}@127.0.0.1:{server.port}/0"
    try:
        with (
            running() as receiver,
            redis.Redis(port=server.port, username="admin", password=PASSWORD, protocol=2) as admin,
            sender(url, receiver, tmp_path / "log"),
        ):
            with redis.Redis.from_url(url, protocol=2) as ops:
                fire(ops)
            wait_until(told(receiver), "both sinks")
            assert amn("alerts", "list", REDIS_URL=url).returncode == 0
            assert "amn_server_up" in amn("metrics", "--once", REDIS_URL=url).stdout
            # The driver names itself, RQ asks for its own address, and the doctor's figures for a limit of
            # the server's configuration, which also holds passwords; all do without.
            known = ("setinfo", "client|info", "config|get")
            asked = [str(row) for row in admin.acl_log()]
            assert [row for row in asked if not any(command in row for command in known)] == []
        assert PASSWORD not in (tmp_path / "log").read_text()
    finally:
        server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sender_on_a_cluster_makes_the_attempts_itself(kind: str, tmp_path: Path) -> None:
    cluster = Cluster(kind, key_slot(b"main"))
    try:
        with running() as receiver, plain(cluster.owner.port) as owner:
            fire(owner)
            with sender(cluster.url, receiver, tmp_path / "log"):
                wait_until(told(receiver), "both sinks")
    finally:
        cluster.close()
