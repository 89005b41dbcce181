"""Opens connections, and turns the driver's errors into ours, in this one place."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis import exceptions as driver
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.crc import key_slot
from redis.retry import Retry

from producer import errors
from producer.address import SENTINEL, TCP, UNIX, Address, parse_address
from producer.settings import ProducerSettings, masked
from producer.transport import forks, routes
from producer.transport.link import Packer

#: A server says so that it cannot work now, but may soon.
_PASSING = ("LOADING", "READONLY", "MISCONF", "TRYAGAIN", "NOREPLICAS", "BUSY ")
#: A batch is megabytes: the driver reads 64 KiB at a time.
_SOCKET_READ_BYTES = 1024 * 1024
#: A script of several keys meets this while the slot is on its way to another node.
_MOVING = "access a non local key"
_BUSY = (routes.Elsewhere, driver.BusyLoadingError, driver.TryAgainError)
#: The errors of the driver.
DRIVER_ERRORS = (driver.RedisError, OSError)
#: Its errors when a connection breaks, or an answer does not come.
LOST = (driver.ConnectionError, driver.TimeoutError, OSError)
#: The driver, our routes and links say so that a command was not even sent, or not run.
_NOT_SENT = ("connecting to", "no node serves", "script is not loaded")
_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM", "The user executing the script can't", "ACL failure in script")
_BACKOFF = ExponentialWithJitterBackoff(base=0.02, cap=1.0)
#: A connection that ended in the middle of TLS; everything else that TLS complains of stays so.
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def options(settings: ProducerSettings, block_ms: int = 0) -> dict[str, Any]:
    """Driver options: the socket's timeout always outlasts a blocking read."""
    return {
        "socket_connect_timeout": settings.connect_timeout_ms / 1000,
        "socket_timeout": (settings.command_timeout_ms + block_ms) / 1000,
        "socket_read_size": _SOCKET_READ_BYTES,
        "health_check_interval": 0,
        "protocol": 2,
        "decode_responses": False,
    }


def connect(settings: ProducerSettings, *, block_ms: int = 0, retries: int = 0) -> redis.Redis:
    """A synchronous client of the node that serves the queue. Nothing is sent yet.

    Args:
        block_ms: Longest blocking read that this client will make.
        retries: Repeats of a command by the driver itself; who calls knows better what a repeat is worth.
    """
    retry = Retry(_BACKOFF, retries)
    found = _pool_options(settings, options(settings, block_ms), routes.CONNECTIONS)
    return open_client({**found, "retry": retry, "command_packer": Packer()})


def connect_async(settings: ProducerSettings, *, block_ms: int = 0, retries: int = 0) -> redis.asyncio.Redis:
    """The asyncio client of `connect`."""
    found = _pool_options(settings, options(settings, block_ms), routes.ASYNC_CONNECTIONS)
    return open_async_client({**found, "retry": AsyncRetry(_BACKOFF, retries)})


def open_client(pool_options: dict[str, Any]) -> redis.Redis:
    """The driver's client. Tests put a fake in this one's place, and in the next one's."""
    return redis.Redis.from_pool(redis.ConnectionPool(**pool_options))


def open_async_client(pool_options: dict[str, Any]) -> redis.asyncio.Redis:
    """The driver's asyncio client."""
    return redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(**pool_options))


def let_go(client: redis.asyncio.Redis) -> None:
    """Drops a client's connections without a word, and without its event loop, which has ended."""
    pool: Any = client.connection_pool
    # The driver has no public name for them; where it calls them otherwise, they are left to be collected.
    forks.let_go([*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())])


def _pool_options(
    settings: ProducerSettings, common: dict[str, Any], classes: tuple[type, type, type]
) -> dict[str, Any]:
    """Options of the driver's pool for this address; `classes` are the unix, TCP and TLS connections."""
    address = parse_address(settings.url)
    login = _login(address.username, address.password)
    if address.kind == UNIX:
        return {**common, **login, "connection_class": classes[0], "path": address.path, "db": address.db}
    common = {**common, "socket_keepalive": True, **_tls_options(settings, address)}
    found = {**common, **login, "connection_class": classes[2 if address.tls else 1], "db": address.db}
    if address.kind == TCP:
        return {**found, "host": address.hosts[0][0], "port": address.hosts[0][1]}
    if address.kind == SENTINEL:
        route = routes.sentinel_route(address.hosts, address.service)
        login = _login(address.sentinel_username, address.sentinel_password)
    else:
        route = routes.cluster_route(address.hosts, key_slot(settings.queue.encode()))
    # A node that only tells the way answers at once, or is not well.
    ask = _Unshown({**common, **login, "socket_timeout": settings.connect_timeout_ms / 1000})
    return {**found, "route": route, "ask": ask}


def _login(username: str, password: str) -> dict[str, str | None]:
    return {"username": username or None, "password": password or None}


class _Unshown(dict[str, Any]):
    """Options with a password, within others: the driver's `repr` of a pool shows what it does not know."""

    def __repr__(self) -> str:
        return "(...)"


def _tls_options(settings: ProducerSettings, address: Address) -> dict[str, Any]:
    """The TLS options; those of the URL come before those of the settings."""
    if not address.tls:
        return {}
    named, check = settings.tls, address.check_hostname
    files = {
        "ssl_ca_certs": address.ca or named.ca,
        "ssl_certfile": address.certificate or named.certificate,
        "ssl_keyfile": address.key or named.key,
    }
    for name, file in files.items():
        try:
            if file:
                Path(file).open("rb").close()
        except OSError as error:  # at once: to the driver this is a server that is away
            raise errors.TlsFailed(f"{name} names {file}, which cannot be read: {error.strerror}") from None
    return {
        **{name: file or None for name, file in files.items()},
        "ssl_check_hostname": named.check_hostname if check is None else check,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def script_text(package: str, name: str) -> str:
    """The text of `lua/<name>.lua` of a room."""
    return resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")


def translated(error: Exception, url: str) -> errors.ServerError:
    """Our error for a driver's error, naming the server (password masked) and what to do."""
    where, text = masked(url), str(error).split("\n")[0]
    if isinstance(error, driver.AuthenticationError | driver.NoPermissionError) or text.startswith(_DENIED):
        return errors.AuthenticationFailed(
            f"the server at {where} refused the credentials, or this command ({text}); check user and "
            "password in REDIS_URL, AMN_CLIENT and the user's ACL"
        )
    if isinstance(error, driver.OutOfMemoryError) or text.startswith("OOM"):
        return errors.ServerOutOfMemory(
            f"the server at {where} is out of memory ({text}); raise maxmemory or drain the queue"
        )
    if isinstance(error, _BUSY) or routes.failed_over(error) or text.startswith(_PASSING) or _MOVING in text:
        return errors.ServerUnavailable(f"the server at {where} cannot serve now ({text}); try again soon")
    if routes.other_node(error):
        return errors.ServerError(
            f"the server at {where} belongs to a cluster, and another node serves this queue; "
            "write redis+cluster://host:port"
        )
    if (refusal := _tls_refusal(error)) is not None:
        return errors.TlsFailed(
            f"no TLS connection to {where} ({refusal}); check ssl_ca_certs (or REDIS_TLS_CA), the host name, "
            "that the port is a TLS port, and whether it asks for a client's certificate (ssl_certfile)"
        )
    if isinstance(error, driver.InvalidResponse):
        return errors.ServerError(f"what is at {where} does not speak the Redis protocol; is it a TLS port?")
    if isinstance(error, LOST):
        lost = errors.ServerUnavailable(
            f"no usable server at {where} ({text}); start one with `amn up`, or set REDIS_URL"
            + _hint(url, text)
        )
        lost.maybe_done = not any(words in text for words in _NOT_SENT)
        return lost
    return errors.ServerError(f"the server at {where} answered {text!r}")


def _hint(url: str, text: str) -> str:
    """A server that is spoken to in the wrong way hangs up without a word, or waits for more."""
    if url.startswith("rediss"):
        return "; is it a TLS port, and does it ask for a client's certificate (ssl_certfile)?"
    hung_up = url.startswith("redis") and ("reset by peer" in text or "lost" in text)
    return "; a TLS port wants rediss://" if hung_up else ""


def _tls_refusal(error: BaseException | None) -> str | None:
    """The refusal of TLS that stands behind the error of the driver."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _BROKEN_OFF):
            return getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def driver_errors(url: str) -> Iterator[None]:
    """Raises ours for every error of the driver in the block: a ServerError, or one of its subclasses."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translated(error, url) from error
