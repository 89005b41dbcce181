"""Opens connections, and turns the driver's errors into ours, in this one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import redis
import redis.asyncio
from redis import exceptions as driver
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from producer.errors import (
    AuthenticationFailed,
    QueueError,
    ServerError,
    ServerOutOfMemory,
    ServerUnavailable,
)
from producer.settings import ProducerSettings, masked

#: A blocking read returns at least this often, so that a stop is noticed.
BLOCK_MS = 500
#: Bytes taken from the socket in one read; replies of a batch are megabytes.
SOCKET_READ_BYTES = 256 * 1024


def options(settings: ProducerSettings, block_ms: int = 0) -> dict[str, Any]:
    """Driver options: the socket's timeout always outlasts a blocking read.

    redis-py repeats a command whose reply was lost. That is safe here: submit is idempotent by
    request id, finish is fenced by the lease, and reads go on from the last id.
    """
    return {
        "socket_connect_timeout": settings.connect_timeout_ms / 1000,
        "socket_timeout": (settings.command_timeout_ms + block_ms) / 1000,
        "socket_keepalive": True,
        "health_check_interval": 0,
        "protocol": 2,
        "decode_responses": False,
    }


def connect(settings: ProducerSettings, *, block_ms: int = 0, retries: int = 3) -> redis.Redis:
    """A synchronous client. Nothing is sent yet.

    Raises:
        ServerUnavailable: The URL is not one that the driver understands.
    """
    retry = Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries)
    try:
        return redis.Redis.from_url(settings.url, retry=retry, **options(settings, block_ms))
    except ValueError as error:
        raise ServerUnavailable(f"cannot use the server URL {masked(settings.url)!r}: {error}") from error


def connect_async(
    settings: ProducerSettings, *, block_ms: int = 0, retries: int = 3
) -> redis.asyncio.Redis:
    """The asyncio client of `connect`."""
    from redis.asyncio.retry import Retry as AsyncRetry

    retry = AsyncRetry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries)
    try:
        return redis.asyncio.Redis.from_url(
            settings.url, retry=retry, **options(settings, block_ms)
        )
    except ValueError as error:
        raise ServerUnavailable(f"cannot use the server URL {masked(settings.url)!r}: {error}") from error


def script_text(package: str, name: str) -> str:
    """The text of `lua/<name>.lua` of a room."""
    return resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")


def translated(error: Exception, url: str) -> QueueError:
    """Our error for a driver's error, naming the server (password masked) and what to do."""
    where = masked(url)
    text = str(error)
    if isinstance(error, driver.AuthenticationError | driver.NoPermissionError) or (
        text.startswith(("NOAUTH", "WRONGPASS", "NOPERM"))
    ):
        return AuthenticationFailed(
            f"the server at {where} refused the credentials ({text}); check user and password in REDIS_URL"
        )
    if isinstance(error, driver.OutOfMemoryError) or text.startswith("OOM"):
        return ServerOutOfMemory(
            f"the server at {where} is out of memory ({text}); raise maxmemory or drain the queue"
        )
    if isinstance(error, driver.ReadOnlyError | driver.ConnectionError | driver.TimeoutError | OSError):
        return ServerUnavailable(
            f"no usable server at {where} ({text}); start one with `amn up`, or set REDIS_URL"
        )
    return ServerError(f"the server at {where} answered {text!r}")


@contextmanager
def driver_errors(url: str) -> Iterator[None]:
    """Maps every redis-py error raised in the block.

    Raises:
        ServerUnavailable: Connection refused, lost, timed out, loading or read-only.
        AuthenticationFailed: Wrong credentials, or a command that the user may not run.
        ServerOutOfMemory: maxmemory reached.
        ServerError: Anything else that the server answered.
    """
    try:
        yield
    except (driver.RedisError, OSError) as error:
        raise translated(error, url) from error
