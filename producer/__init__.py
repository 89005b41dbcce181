"""What a client installs: numpy, msgpack and redis, never torch.

    from producer import Producer

    with Producer("redis://127.0.0.1:6379/0") as producer:
        reply = producer.predict(context)  # (5, 768) float32, unit-norm rows
        print(reply.vector.shape, reply.confidence, reply.served_by)

`AsyncProducer` has the same verbs, to be awaited; `producer.testing` has one for your own tests.
"""

from typing import TYPE_CHECKING, Any

from producer.client import Producer
from producer.errors import DuplicateRequest, QueueError, QueueFull
from producer.handle import AsyncHandle, Handle
from producer.messages import LANES, Failure, Reply, Request
from producer.requests import Options
from producer.settings import ProducerSettings

if TYPE_CHECKING:
    from producer.aio import AsyncProducer

__all__ = [
    "LANES",
    "AsyncHandle",
    "AsyncProducer",
    "DuplicateRequest",
    "Failure",
    "Handle",
    "Options",
    "Producer",
    "ProducerSettings",
    "QueueError",
    "QueueFull",
    "Reply",
    "Request",
]


def __getattr__(name: str) -> Any:
    """Loads the asyncio producer when it is first asked for."""
    if name == "AsyncProducer":
        from producer.aio import AsyncProducer

        return AsyncProducer
    raise AttributeError(f"module 'producer' has no attribute {name!r}")
