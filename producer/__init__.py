"""What a client installs: numpy, msgpack and redis, never torch.

    from producer import Producer

    with Producer("redis://127.0.0.1:6379/0") as producer:
        reply = producer.predict(context)  # (5, 768) float32, unit-norm rows
        print(reply.vector.shape, reply.confidence, reply.served_by)
"""

from producer.client import Handle, Producer
from producer.errors import QueueError, QueueFull
from producer.messages import LANES, Failure, Reply, Request
from producer.requests import Options
from producer.settings import ProducerSettings

__all__ = [
    "LANES",
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
