"""Tells whether a request would be answered: the server can be reached, and an AMN worker lives."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from ops.health import workers
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import driver_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The findings of one look.

    Attributes:
        why: What is missing; "" when a request would be answered.
        workers: AMN workers that live and make progress.
        model: Id of the model that one of them serves; "" without one.
    """

    why: str = ""
    workers: int = 0
    model: str = ""


def look(client: redis.Redis, settings: ProducerSettings) -> Ready:
    """Looks at the server; an error of its is one of the answers."""
    keys = Keys(settings.queue)
    try:
        with driver_errors(settings.url):
            found = workers.read(client, keys, time_ms(client.time()))
    except ServerError as error:
        return Ready(why=str(error))
    well = [one for one in found if one.kind == "amn" and not one.stuck]
    if not well:
        return Ready(why=f"no AMN worker of queue {settings.queue} lives; requests wait until one does")
    return Ready(workers=len(well), model=well[0].model)
