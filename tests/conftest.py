"""Fixtures for every test: servers fake and real, contexts, and an environment of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import hypothesis
import numpy as np
import pytest
import redis
import structlog
from numpy.typing import NDArray
from servers import KINDS, Server

import producer.transport.connection

# A loaded machine takes long for an example now and then; that says nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

pytest_plugins = ("needs",)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in its background; the commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # As nohup starts it. This process ignores it still; no program inherits a function, as it would SIG_IGN.
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A REDIS_URL of the developer's shell must not reach a test, and no endpoint for traces."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("AMN_QUEUE", raising=False)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def contexts() -> Callable[..., NDArray[np.float32]]:
    """Makes `n` contexts, (n, 5, 768) float32 with unit-norm rows, always the same for a seed."""

    def make(n: int, seed: int = 0) -> NDArray[np.float32]:
        rows = np.random.default_rng(seed).normal(size=(n, 5, 768)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=2, keepdims=True)

    return make


@pytest.fixture
def context(contexts: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
    """One context, (5, 768)."""
    return contexts(1)[0]


@pytest.fixture(scope="session")
def _session_servers() -> Iterator[Callable[[str], Server]]:
    started: dict[str, Server] = {}

    def of_kind(kind: str) -> Server:
        if kind not in started:
            started[kind] = Server(kind).start()
        return started[kind]

    yield of_kind
    for server in started.values():
        server.close()


class Target:
    """A server that a contract test runs against.

    Attributes:
        kind: "fake", "valkey" or "redis".
        url: For `Producer(url)` and for workers.
        admin: A plain client.
    """

    def __init__(self, kind: str, url: str, admin: redis.Redis) -> None:
        self.kind = kind
        self.url = url
        self.admin = admin


@pytest.fixture(autouse=True)
def _fresh_logs() -> Iterator[None]:
    """A command that set the logs up leaves them on a captured stream that is closed by now."""
    yield
    structlog.reset_defaults()


@pytest.fixture(params=["fake", *KINDS])
def server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    _session_servers: Callable[[str], Server],
) -> Iterator[Target]:
    """An empty server: fakeredis, Valkey and, where it is installed, Redis (tests/needs.py).

    fakeredis is known to differ on streams, so that a pass on it alone would say little.
    """
    kind = request.param
    if kind == "fake":
        yield _fake(monkeypatch)
        return
    real = _session_servers(kind)
    admin = real.client()
    admin.flushall()
    yield Target(kind, real.url, admin)
    admin.close()


@pytest.fixture(params=KINDS)
def real_server(
    request: pytest.FixtureRequest, _session_servers: Callable[[str], Server]
) -> Iterator[Target]:
    """As `server`, real ones only."""
    real = _session_servers(request.param)
    admin = real.client()
    admin.flushall()
    yield Target(request.param, real.url, admin)
    admin.close()


@pytest.fixture
def rig(server: Target, contexts: Callable[..., NDArray[np.float32]]) -> Iterator[Any]:
    """Several workers' queues on one server (tests/contract/rig.py)."""
    yield from _rig(server, contexts)


@pytest.fixture
def real_rig(real_server: Target, contexts: Callable[..., NDArray[np.float32]]) -> Iterator[Any]:
    """As `rig`, on real servers only."""
    yield from _rig(real_server, contexts)


def _rig(target: Target, contexts: Callable[..., NDArray[np.float32]]) -> Iterator[Any]:
    from rig import Rig  # beside the contract tests, which are the only ones to ask for it

    rig = Rig(target, contexts(8))
    yield rig
    rig.close()


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own, which it may kill and start again: `make_server(kind, ...)`."""
    made: list[Server] = []

    def make(kind: str = "valkey", **options: Any) -> Server:
        made.append(Server(kind, **options))
        return made[-1].start()

    yield make
    for one in made:
        one.close()


def _fake(monkeypatch: pytest.MonkeyPatch) -> Target:
    backend = fakeredis.FakeServer()

    def connect(options: dict[str, Any]) -> Any:
        return fakeredis.FakeRedis(server=backend, retry=options.get("retry"), protocol=2)

    def connect_async(options: dict[str, Any]) -> Any:
        return fakeredis.FakeAsyncRedis(server=backend, protocol=2)

    monkeypatch.setattr(producer.transport.connection, "open_client", connect)
    monkeypatch.setattr(producer.transport.connection, "open_async_client", connect_async)
    return Target("fake", "redis://fake:1/0", fakeredis.FakeRedis(server=backend))


@pytest.fixture
def run() -> Callable[[Any], Any]:
    """Runs a coroutine in a new event loop, with asyncio's debug checks."""

    def run_one(coroutine: Any) -> Any:
        return asyncio.run(coroutine)

    return run_one
