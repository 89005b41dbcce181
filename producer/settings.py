"""The settings of a producer; the only place in this room that reads the environment."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from typing import Any, Self

from producer.address import parse_address
from producer.errors import InvalidSettings
from producer.keys import Keys
from producer.messages import BATCH_CONTEXTS_MAX, DEFAULT_ENCODER, LANES
from producer.sampling import DEFAULT_SALT

_COUNTS = ("entries_max", "bytes_max", "in_flight_max", "batch_contexts_max", "seen_window_ms")
_TIMES_MS = {"result_timeout_ms": 1, "connect_timeout_ms": 1, "command_timeout_ms": 1, "retry_ms": 0}
_TEXTS = ("url", "queue", "client", "encoder", "sample_salt")
_VARIABLES = {"url": "REDIS_URL", "queue": "AMN_QUEUE", "client": "AMN_CLIENT", "encoder": "AMN_ENCODER"}
_TLS_VARIABLES = {"ca": "REDIS_TLS_CA", "certificate": "REDIS_TLS_CERT", "key": "REDIS_TLS_KEY"}
DEFAULT_URL = "redis://127.0.0.1:6379/0"


def masked(url: str) -> str:
    """The URL with its password replaced, for logs and messages."""
    # Everything up to the last `@`: one with unescaped characters in it must not leak either.
    url = re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&]\w*password=)[^&]*", r"\1***", url)


#: A dot ends it within the client id, so that no name is the beginning of another one's.
_CLIENT = re.compile(r"[A-Za-z0-9_-]{0,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files for `rediss://`; what the URL's parameters say comes before it.

    Attributes:
        ca: Certificates of the CAs to trust; "" for the system's.
        certificate, key: This client's own, for a server that asks for them.
        check_hostname: Whether the server's certificate must bear the name of the URL.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    check_hostname: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings:
    """The address, connection and limits of a producer.

    Attributes:
        url: Address of the server, the sentinels or the cluster (producer/address.py).
        queue: Name of the queue.
        tls: Files for TLS.
        client: First part of the client id, up to the dot. An ACL that allows a user the reply
            streams of one such name keeps it from those of others.
        encoder: Encoder id stamped on each request; workers refuse that of another model than theirs.
        lanes: Lanes that may be asked for.
        entries_max: Entries that may wait in the queue before `QueueFull`; for high priority five
            quarters of it, for low a half.
        bytes_max: Payload bytes that may wait in the queue before `QueueFull`; likewise.
        in_flight_max: Contexts of this producer without an answer yet.
        batch_contexts_max: Contexts in one message of `submit_batch`; at most 256.
        seen_window_ms: How long a request id is remembered, so that a repeated submit is one request.
        result_timeout_ms: How long `result()` waits by default.
        stages: Whether this producer counts its own whole times, and the answers' way back
            (`Producer.stages`).
        sample_salt: Salt of the shadow sampling; the workers' must be the same.
        retry_ms: How long a submit tries again by itself after a first failure (with
            `block=True`: up to the deadline). A try that is under way is waited for.
        connect_timeout_ms: For opening a connection.
        command_timeout_ms: For one command's answer; a try of a submit takes up to twice as long.
    """

    url: str = DEFAULT_URL
    queue: str = "main"
    tls: Tls = Tls()
    client: str = ""
    encoder: str = DEFAULT_ENCODER
    lanes: tuple[str, ...] = LANES
    entries_max: int = 100_000
    bytes_max: int = 2 * 1024**3
    in_flight_max: int = 8_192
    batch_contexts_max: int = BATCH_CONTEXTS_MAX
    seen_window_ms: int = 60_000
    result_timeout_ms: int = 30_000
    stages: bool = False
    sample_salt: str = DEFAULT_SALT
    retry_ms: int = 1_000
    connect_timeout_ms: int = 2_000
    command_timeout_ms: int = 5_000

    def __post_init__(self) -> None:
        self._check_types()
        try:
            Keys(self.queue)
        except ValueError as error:
            raise InvalidSettings(str(error)) from None
        try:
            parse_address(self.url)
        except ValueError as error:
            # No chain: the driver's own texts, and Python's, may quote a part of the password.
            raise InvalidSettings(
                f"server URL {masked(self.url)!r} cannot be used: {error}; write "
                "redis://user:password@host:port/0 with special characters percent-encoded, or "
                "unix:///path/to/socket"
            ) from None
        if not _CLIENT.fullmatch(self.client):
            raise InvalidSettings(
                f"client {self.client!r} is not valid; use at most 32 letters, digits, '_' or '-'"
            )
        if self.batch_contexts_max > BATCH_CONTEXTS_MAX:
            raise InvalidSettings(
                f"batch_contexts_max is {self.batch_contexts_max}; a message holds {BATCH_CONTEXTS_MAX}"
            )

    def _check_types(self) -> None:
        for name in _TEXTS:
            if not isinstance(value := getattr(self, name), str):
                raise InvalidSettings(f"{name} is {value!r:.80}; it must be text")
        if not isinstance(self.lanes, tuple | list) or not all(isinstance(lane, str) for lane in self.lanes):
            raise InvalidSettings(f"lanes is {self.lanes!r:.80}; it must be a tuple of names")
        for name in _COUNTS:
            # The server's commands take whole numbers; one with a point would break them half-way.
            if type(value := getattr(self, name)) is not int or value < 1:
                raise InvalidSettings(f"{name} is {value!r:.80}; it must be an integer of at least 1")
        for name, least in _TIMES_MS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise InvalidSettings(f"{name} is {value!r:.80}; it must be a number of at least {least}")

    @classmethod
    def from_environment(cls, **overrides: object) -> Self:
        """Explicit value > environment > default; None is no value.

        The environment: `REDIS_URL`, `AMN_QUEUE`, `AMN_CLIENT`, `AMN_ENCODER`, and for TLS
        `REDIS_TLS_CA`, `REDIS_TLS_CERT` and `REDIS_TLS_KEY`.
        """
        values: dict[str, Any] = _environment(_VARIABLES)
        if files := _environment(_TLS_VARIABLES):
            values["tls"] = Tls(**files)
        return cls(**values | {name: value for name, value in overrides.items() if value is not None})

    def __repr__(self) -> str:
        return f"ProducerSettings(url={masked(self.url)!r}, queue={self.queue!r})"


def _environment(variables: dict[str, str]) -> dict[str, Any]:
    return {name: value for name, variable in variables.items() if (value := os.environ.get(variable, ""))}


def settings_of(url: str | None, settings: ProducerSettings | None) -> ProducerSettings:
    """Returns the given settings, with the URL if one is given; else those of the environment."""
    if settings is None:
        return ProducerSettings.from_environment(url=url)
    return settings if url is None else replace(settings, url=url)
