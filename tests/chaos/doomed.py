"""A producer that is going to be killed: it sends for as long as it lives.

Takes a JSON object as its only argument; prints one JSON object a line: its client id and how many
requests it knows to be in.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from ops.sample import Sample
from producer import Options, Producer
from producer.errors import QueueError
from producer.settings import ProducerSettings

_CHUNK, _PAUSE_S = 8, 0.1


def send(config: dict[str, Any]) -> None:
    """Until somebody kills this process."""
    sample = Sample.load(Path(config["sample"]))
    settings = ProducerSettings(
        url=config["url"], entries_max=config["entries_max"], client=config["prefix"], retry_ms=300
    )
    accepted = 0
    with Producer(settings=settings) as producer:
        for first in itertools.count(0, _CHUNK):
            numbers = range(first, first + _CHUNK)
            options = [Options(request_id=f"{config['prefix']}-{n}") for n in numbers]
            try:
                handles = producer.submit_many([sample.context(n) for n in numbers], options=options)
            except QueueError as error:
                handles = list(error.accepted)
            accepted += len(handles)
            print(
                json.dumps({"client": producer.channels[0].client_id, "accepted": accepted}),
                flush=True,
            )
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    send(json.loads(sys.argv[1]))
