"""The client side of the queue, which needs numpy, msgpack and redis and never torch.

    from producer import Producer

    with Producer("redis://127.0.0.1:6379/0") as producer:
        reply = producer.predict(context)  # (5, 768) float32, unit-norm rows
        print(reply.vector.shape, reply.confidence, reply.served_by)

`AsyncProducer` has the same verbs, to be awaited; `producer.testing` has one for your own tests.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from producer.errors import DuplicateRequest, QueueError, QueueFull
from producer.messages import LANES, BatchReply, Failure, Reply, Request
from producer.options import Options
from producer.settings import ProducerSettings
from producer.windows import Windows

if TYPE_CHECKING:
    from producer.aio import AsyncProducer
    from producer.client import Producer
    from producer.session.handle import AsyncBatchHandle, AsyncHandle, BatchHandle, Handle

__all__ = [
    "LANES",
    "AsyncBatchHandle",
    "AsyncHandle",
    "AsyncProducer",
    "BatchHandle",
    "BatchReply",
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
    "Windows",
    "__version__",
]

#: Version of the installed distribution, as "0.1.0"; "" for sources that were not installed.
__version__: str

#: Loaded when first asked for: the Redis driver takes half of the import's time, and code that only
#: knows the messages and errors does not need it.
_LAZY = {
    "producer.aio": ("AsyncProducer",),
    "producer.client": ("Producer",),
    "producer.session.handle": ("AsyncBatchHandle", "AsyncHandle", "BatchHandle", "Handle"),
}


def __getattr__(name: str) -> Any:
    """Loads one of the lazy names."""
    for module, names in _LAZY.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    if name == "__version__":
        from importlib import metadata  # takes a fifth of the import's time, and few ask

        try:
            value = globals()[name] = metadata.version("amn-queue")
        except metadata.PackageNotFoundError:
            value = globals()[name] = ""
        return value
    raise AttributeError(f"module 'producer' has no attribute {name!r}")
