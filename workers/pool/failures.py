"""Why a process of the service ended with an error: kept on the server, where `amn doctor` finds it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from producer.errors import QueueError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import connect, driver_errors

_KEPT, _KEPT_S, _TEXT_MAX = 20, 3_600, 500


@contextmanager
def last_words(settings: ProducerSettings, kind: str) -> Iterator[None]:
    """Notes the error that ends the block, and raises it all the same."""
    try:
        yield
    except Exception as error:
        with suppress(QueueError):  # a server that is away is what the error says, as a rule
            _note(settings, kind, str(error) or repr(error))
        raise


def _note(settings: ProducerSettings, kind: str, text: str) -> None:
    key, client = Keys(settings.queue).failures, connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            said = {"kind": kind, "host": socket.gethostname(), "at_ms": int(time_ms(client.time()))}
            with client.pipeline(transaction=True) as pipe:
                pipe.lpush(key, json.dumps(said | {"text": text[:_TEXT_MAX]}))
                pipe.ltrim(key, 0, _KEPT - 1)
                pipe.expire(key, _KEPT_S)
                pipe.execute()
    finally:
        client.close()
