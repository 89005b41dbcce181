"""One server that loads its file, or becomes a replica, under a producer and a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis
from servers import KINDS, Server, free_port
from service import Service
from topology import plain, wait_until

from producer import Producer, ProducerSettings
from producer.errors import ServerUnavailable
from producer.keys import Keys

EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@EACH_KIND
def test_a_server_that_loads_its_file_is_waited_for(
    kind: str, make_server: Callable[..., Server], contexts: Any
) -> None:
    server = make_server(kind, tcp=True, arguments=("--appendonly", "yes"))
    settings = ProducerSettings(url=server.tcp_url)
    rows = contexts(100)
    with Producer(settings=settings) as producer:
        handles = [producer.submit(row) for row in rows]
        with server.client() as admin, admin.pipeline(transaction=False) as pipe:
            for _ in range(8_000):
                pipe.incr("something-else")
            pipe.execute()
        server.kill()
        # Slow enough to be met while it loads: it looks up after every 1,024 commands.
        server.arguments += ("--key-load-delay", "200")
        starting = threading.Thread(target=server.start)
        starting.start()
        with plain(server.port) as client, Service(settings):
            wait_until(lambda: _loading(client), "a server that loads")
            late = producer.submit(rows[0], block=True)
            for handle, row in zip([*handles, late], [*rows, rows[0]], strict=True):
                assert np.array_equal(handle.result(20_000).vector, row[-1])
        starting.join()


def _loading(client: redis.Redis) -> bool:
    try:
        client.get("x")
    except redis.exceptions.BusyLoadingError:
        return True
    return False


@EACH_KIND
def test_a_server_that_became_a_replica_is_left_and_asked_for_anew(
    kind: str, make_server: Callable[..., Server], context: Any
) -> None:
    """Behind one name, such as a load balancer's, the next connection may find the new master."""
    server = make_server(kind, tcp=True)
    settings = ProducerSettings(url=server.tcp_url, retry_ms=300)
    with plain(server.port) as admin, Service(settings), Producer(settings=settings) as producer:
        producer.predict(context)
        admin.replicaof("127.0.0.1", free_port())
        before = admin.info("stats")["total_connections_received"]
        with pytest.raises(ServerUnavailable, match="read only replica"):
            producer.submit(context)
        assert admin.info("stats")["total_connections_received"] > before
        assert admin.xlen(Keys().requests) == 0
        admin.replicaof("NO", "ONE")
        assert np.array_equal(producer.predict(context, timeout_ms=20_000).vector, context[-1])
