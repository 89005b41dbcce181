"""What the loop says and does while its server is away."""

from __future__ import annotations

from structlog.testing import capture_logs

from producer.errors import ServerUnavailable
from workers.engine.loop import Loop
from workers.settings import WorkerSettings


class AwayThreeTimes:
    """A queue whose server is away for three tries, comes back, and stops the loop."""

    name = "amn-test"
    more = False

    def __init__(self) -> None:
        self.settings = WorkerSettings(kind="amn")
        self.tries = 0
        self.loop: Loop | None = None

    def rejoin(self) -> None:
        self.tries += 1
        if self.tries <= 3:
            raise ServerUnavailable("no usable server")

    def lease(self, *, block: bool = True) -> list[object]:
        assert self.loop is not None
        self.loop.stop()
        return []

    def unask(self) -> None:
        """Nothing was asked."""


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends():
    queue = AwayThreeTimes()
    queue.loop = Loop(queue, handler=None)  # type: ignore[arg-type]
    queue.loop._stopping.wait = lambda _: False  # type: ignore[method-assign]
    with capture_logs() as logs:
        queue.loop.run()
    assert queue.tries == 4
    assert [line["event"] for line in logs] == ["worker_waits_for_server", "worker_resumed"]
