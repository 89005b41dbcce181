"""What a producer can be told; the only place in this room that reads the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Self

from producer.errors import InvalidSettings
from producer.keys import Keys
from producer.messages import DEFAULT_ENCODER, LANES
from producer.sampling import DEFAULT_SALT

SCHEMES = ("redis://", "rediss://", "unix://")
_POSITIVE = (
    "entries_max",
    "bytes_max",
    "in_flight_max",
    "seen_window_ms",
    "result_timeout_ms",
    "connect_timeout_ms",
    "command_timeout_ms",
)
DEFAULT_URL = "redis://127.0.0.1:6379/0"


def masked(url: str) -> str:
    """The URL with its password replaced, for logs and messages.

    Everything up to the last `@` counts as password, so that one with unescaped characters in it
    does not leak either.
    """
    url = re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&]password=)[^&]*", r"\1***", url)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings:
    """How a producer connects, and its limits.

    Attributes:
        url: `redis://`, `rediss://` or `unix://` address of the server.
        queue: Name of the queue.
        encoder: Encoder id stamped on each request.
        lanes: Lanes that may be asked for.
        entries_max: Entries that may wait in the queue before `QueueFull`.
        bytes_max: Payload bytes that may wait in the queue before `QueueFull`.
        in_flight_max: Requests of this producer without an answer yet.
        seen_window_ms: How long a request id is remembered, so that a repeated submit is one request.
        result_timeout_ms: How long `result()` waits by default.
        sample_salt: Salt of the shadow sampling; the workers' must be the same.
        retry_ms: How long a submit tries again by itself when the connection breaks (with
            `block=True`: up to the deadline).
        connect_timeout_ms: For opening a connection.
        command_timeout_ms: For one command's answer.
    """

    url: str = DEFAULT_URL
    queue: str = "main"
    encoder: str = DEFAULT_ENCODER
    lanes: tuple[str, ...] = LANES
    entries_max: int = 100_000
    bytes_max: int = 2 * 1024**3
    in_flight_max: int = 16_384
    seen_window_ms: int = 60_000
    result_timeout_ms: int = 30_000
    sample_salt: str = DEFAULT_SALT
    retry_ms: int = 1_000
    connect_timeout_ms: int = 2_000
    command_timeout_ms: int = 5_000

    def __post_init__(self) -> None:
        try:
            Keys(self.queue)
        except ValueError as error:
            raise InvalidSettings(str(error)) from None
        if not self.url.startswith(SCHEMES):
            raise InvalidSettings(
                f"server URL {masked(self.url)!r} is not usable; it begins with {', '.join(SCHEMES)}"
            )
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise InvalidSettings(f"{name} is {getattr(self, name)}; it must be at least 1")

    @classmethod
    def from_environment(cls, **overrides: object) -> Self:
        """Explicit value > environment (`REDIS_URL`, `AMN_QUEUE`) > default; None is no value."""
        values: dict[str, object] = {}
        for name, variable in (("url", "REDIS_URL"), ("queue", "AMN_QUEUE")):
            if os.environ.get(variable):
                values[name] = os.environ[variable]
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"ProducerSettings(url={masked(self.url)!r}, queue={self.queue!r})"
