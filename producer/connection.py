"""Opens connections, and turns the driver's errors into ours, in this one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import redis
import redis.asyncio
from redis import exceptions as driver
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from producer.errors import (
    AuthenticationFailed,
    InvalidSettings,
    QueueError,
    ServerError,
    ServerOutOfMemory,
    ServerUnavailable,
)
from producer.packing import Packer
from producer.settings import ProducerSettings, masked

#: How a server says that it cannot work now, but may soon.
_PASSING = ("LOADING", "READONLY", "MASTERDOWN", "MISCONF", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY ")
#: A batch is megabytes: the driver reads 64 KiB at a time.
_SOCKET_READ_BYTES = 1024 * 1024
_BUSY = (driver.ReadOnlyError, driver.BusyLoadingError)
_LOST = (driver.ConnectionError, driver.TimeoutError, OSError)
_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM")


def options(settings: ProducerSettings, block_ms: int = 0) -> dict[str, Any]:
    """Driver options: the socket's timeout always outlasts a blocking read."""
    driver_options: dict[str, Any] = {
        "socket_connect_timeout": settings.connect_timeout_ms / 1000,
        "socket_timeout": (settings.command_timeout_ms + block_ms) / 1000,
        "socket_read_size": _SOCKET_READ_BYTES,
        "health_check_interval": 0,
        "protocol": 2,
        "decode_responses": False,
    }
    if not settings.url.startswith("unix://"):  # a unix socket has no keepalive, and its class no such option
        driver_options["socket_keepalive"] = True
    return driver_options


def connect(settings: ProducerSettings, *, block_ms: int = 0, retries: int = 0) -> redis.Redis:
    """A synchronous client. Nothing is sent yet.

    Args:
        block_ms: Longest blocking read that this client will make.
        retries: How often the driver repeats a command by itself. None by default: who calls knows
            better how long a repeat is worth it, and logs it once.

    Raises:
        InvalidSettings: The URL is not one that the driver understands.
    """
    retry = Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries)
    with _url_errors(settings):
        return redis.Redis.from_url(
            settings.url, retry=retry, command_packer=Packer(), **options(settings, block_ms)
        )


def connect_async(settings: ProducerSettings, *, block_ms: int = 0, retries: int = 0) -> redis.asyncio.Redis:
    """The asyncio client of `connect`."""
    retry = AsyncRetry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries)
    with _url_errors(settings):
        return redis.asyncio.Redis.from_url(settings.url, retry=retry, **options(settings, block_ms))


@contextmanager
def _url_errors(settings: ProducerSettings) -> Iterator[None]:
    try:
        yield
    except ValueError:
        # Not the driver's own text, and no chain: it may quote a part of the password.
        raise InvalidSettings(
            f"server URL {masked(settings.url)!r} cannot be read; write redis://user:password@host:port/0 "
            "with special characters percent-encoded, or unix:///path/to/socket"
        ) from None


def script_text(package: str, name: str) -> str:
    """The text of `lua/<name>.lua` of a room."""
    return resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")


def translated(error: Exception, url: str) -> QueueError:
    """Our error for a driver's error, naming the server (password masked) and what to do."""
    where, text = masked(url), str(error).split("\n")[0]
    if isinstance(error, driver.AuthenticationError | driver.NoPermissionError) or text.startswith(_DENIED):
        return AuthenticationFailed(
            f"the server at {where} refused the credentials ({text}); check user and password in REDIS_URL"
        )
    if isinstance(error, driver.OutOfMemoryError) or text.startswith("OOM"):
        return ServerOutOfMemory(
            f"the server at {where} is out of memory ({text}); raise maxmemory or drain the queue"
        )
    if isinstance(error, _BUSY) or text.startswith(_PASSING):
        return ServerUnavailable(f"the server at {where} cannot serve this now ({text}); try again soon")
    if isinstance(error, _LOST):
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
