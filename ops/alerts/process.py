"""The process of `amn alerts run`: one sender in one loop, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from ops.alerts.config import Sinks, load, load_usable
from ops.alerts.delivery import Delivery
from ops.alerts.sender import Sender
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect


def run(settings: ProducerSettings, config: Path | None) -> None:
    """Sends until SIGTERM or Ctrl-C; the attempt at hand is finished first.

    Raises:
        SinksRefused: The sinks cannot be used as they are described.
    """
    load_usable(config)
    sinks, keys, stopping = Sinks(lambda: load(config)), Keys(settings.queue), threading.Event()
    client = connect(settings)
    delivery = Delivery(client, keys, sinks)
    sender = Sender(client, keys, sinks, delivery.deliver, delivery.repeat_state)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    sender.run(stopping, settings.url)
