"""Looks at partitions whose servers do not answer."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from typing import Any

from ops.gateway.readiness import Looks
from producer.partitions import partition_queues
from producer.settings import ProducerSettings


def test_a_partition_whose_server_hangs_leaves_the_gateway_ready_within_a_probes_time() -> None:
    with ExitStack() as undo:
        hanging = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"redis://127.0.0.1:{hanging.getsockname()[1]}"
        parts = [ProducerSettings(url=address, queue=queue) for queue in partition_queues("main", 20)]
        look = undo.enter_context(Looks(parts))
        for _ in range(3):
            began_s = time.monotonic()
            found = look()
            assert time.monotonic() - began_s < 5  # where one after the other would take ten seconds
            assert list(found) == [part.queue for part in parts]
            assert all(isinstance(one, str) for one in found.values())


def test_partitions_that_are_away_hide_none_of_those_that_live() -> None:
    parts = [ProducerSettings(queue=queue) for queue in partition_queues("main", 80)]
    away, lives, worker = parts[:72], parts[72:], ["a worker"]
    with Looks(parts) as look:
        asks: dict[str, Any] = {part.queue: lambda: time.sleep(0.8) for part in away}
        look._asks = asks | {part.queue: lambda: worker for part in lives}
        for _ in range(2):
            found = look()
            assert [queue for queue, one in found.items() if one == worker] == [part.queue for part in lives]
