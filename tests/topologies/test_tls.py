"""TLS: producers, workers and commands against a real server with a CA of our own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Server, free_port, need
from service import Service
from topology import Certificates, wait_until

from producer import AsyncProducer, Producer, ProducerSettings
from producer.errors import ServerError, TlsFailed
from producer.settings import Tls
from producer.transport.connection import connect

pytestmark = pytest.mark.needs("redis-server")  # the wheel's Valkey is built without TLS


class TlsServer:
    """A server that asks each client for a certificate, and the parts of its URL.

    Attributes:
        port, plain_port: With TLS, and without.
    """

    def __init__(self, server: Server, port: int) -> None:
        self.port, self.plain_port = port, server.port
        self.place = f"127.0.0.1:{port}/0"


def tls_words(certificates: Certificates, port: int) -> tuple[str, ...]:
    """A server's options: TLS at this port, for clients with a certificate."""
    files = ("--tls-cert-file", certificates.server, "--tls-key-file", certificates.server_key)
    return (
        "--tls-port",
        str(port),
        *files,
        "--tls-ca-cert-file",
        certificates.ca,
        "--tls-auth-clients",
        "yes",
    )


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[TlsServer]:
    port = free_port()
    server = Server("redis", tcp=True, arguments=tls_words(certificates, port)).start()
    yield TlsServer(server, port)
    server.close()


@pytest.fixture
def trusted(tls_server: TlsServer, certificates: Certificates) -> str:
    """The URL with everything in it."""
    return (
        f"rediss://{tls_server.place}?ssl_ca_certs={certificates.ca}"
        f"&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}"
    )


def test_a_request_is_answered_over_tls(trusted: str, context: Any) -> None:
    settings = ProducerSettings(url=trusted)
    with Service(settings), Producer(settings=settings) as producer:
        assert np.array_equal(producer.predict(context).vector, context[-1])
        assert len(list(producer.predict_many([context] * 300))) == 300


def test_the_asyncio_producer_does_the_same(trusted: str, context: Any, run: Callable[[Any], Any]) -> None:
    settings = ProducerSettings(url=trusted)

    async def ask() -> Any:
        async with AsyncProducer(settings=settings) as producer:
            return (await producer.predict(context)).vector

    with Service(settings):
        assert np.array_equal(run(ask()), context[-1])


def test_the_files_come_from_settings_or_environment_too(
    tls_server: TlsServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = Tls(ca=certificates.ca, certificate=certificates.client, key=certificates.client_key)
    with Producer(settings=ProducerSettings(url=f"rediss://{tls_server.place}", tls=tls)):
        pass
    monkeypatch.setenv("REDIS_URL", f"rediss://{tls_server.place}")
    monkeypatch.setenv("REDIS_TLS_CA", certificates.ca)
    monkeypatch.setenv("REDIS_TLS_CERT", certificates.client)
    monkeypatch.setenv("REDIS_TLS_KEY", certificates.client_key)
    with Producer():
        pass


def test_the_commands_speak_tls(amn: Any, trusted: str) -> None:
    settings = ProducerSettings(url=trusted)
    with Service(settings):
        ended = amn("doctor", "--json", REDIS_URL=trusted)
    assert '"redis"' in ended.stdout, ended.stderr
    assert "7.0" in ended.stdout
    refused = amn("dlq", "list", REDIS_URL=trusted.replace("127.0.0.1", "localhost"))
    assert refused.returncode == 1
    assert "no TLS connection" in refused.stderr


def started(kind: str, url: str, run: Callable[[Any], Any]) -> None:
    settings = ProducerSettings(url=url, connect_timeout_ms=500, command_timeout_ms=500)

    async def start() -> None:
        async with AsyncProducer(settings=settings):
            pass

    if kind == "asyncio":
        run(start())
    else:
        with Producer(settings=settings):
            pass


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize("wrong", ["ca", "system's ca", "name"])
def test_a_server_that_is_not_to_be_trusted_is_refused_by_name(
    wrong: str, kind: str, trusted: str, certificates: Certificates, run: Any
) -> None:
    url = {
        "ca": trusted.replace(certificates.ca, certificates.other_ca),
        "system's ca": trusted.replace(f"ssl_ca_certs={certificates.ca}&", ""),
        "name": trusted.replace("127.0.0.1", "localhost"),
    }[wrong]
    with pytest.raises(TlsFailed, match="ssl_ca_certs") as caught:
        started(kind, url, run)
    assert caught.value.code == "tls_failed"
    assert not caught.value.retryable


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize("wrong", ["no certificate", "plain port"])
def test_a_server_that_hangs_up_or_waits_is_unavailable_with_a_hint(
    wrong: str, kind: str, trusted: str, tls_server: TlsServer, run: Any
) -> None:
    url = trusted.partition("&")[0]
    if wrong == "plain port":
        url = trusted.replace(f":{tls_server.port}/", f":{tls_server.plain_port}/")
    with pytest.raises(ServerError, match=r"TLS port.*ssl_certfile"):
        started(kind, url, run)


def test_the_name_is_not_compared_when_the_url_says_so(trusted: str) -> None:
    with Producer(trusted.replace("127.0.0.1", "localhost") + "&ssl_check_hostname=false"):
        pass


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_speaking_plainly_to_a_tls_port_is_unavailable_with_a_hint(
    kind: str, tls_server: TlsServer, run: Any
) -> None:
    with pytest.raises(ServerError, match="a TLS port wants rediss://"):
        started(kind, f"redis://{tls_server.place}", run)


def files_of(certificates: Certificates) -> str:
    return (
        f"ssl_ca_certs={certificates.ca}&ssl_certfile={certificates.client}"
        f"&ssl_keyfile={certificates.client_key}"
    )


def echoed(url: str, context: Any, run: Callable[[Any], Any]) -> None:
    """An answer each for both producers, from a worker at the same address."""
    settings = ProducerSettings(url=url)

    async def ask() -> Any:
        async with AsyncProducer(settings=settings) as producer:
            return (await producer.predict(context)).vector

    with Service(settings), Producer(settings=settings) as producer:
        assert np.array_equal(producer.predict(context).vector, context[-1])
        assert np.array_equal(run(ask()), context[-1])


def test_a_cluster_is_found_over_tls(certificates: Certificates, context: Any, run: Any) -> None:
    port, bus = free_port(), free_port()
    words = (*tls_words(certificates, port), "--tls-cluster", "yes", "--cluster-enabled", "yes")
    server = Server("redis", arguments=(*words, "--cluster-port", str(bus))).start()
    try:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok", "a cluster")
        echoed(f"rediss+cluster://127.0.0.1:{port}?{files_of(certificates)}", context, run)
    finally:
        server.close()


def test_sentinels_are_asked_over_tls(
    tls_server: TlsServer, certificates: Certificates, context: Any, run: Any, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "conf").write_text(f"sentinel monitor mymaster 127.0.0.1 {tls_server.port} 1\n")
    words = [*tls_words(certificates, port), "--tls-replication", "yes", "--port", "0"]
    command = [need("redis"), str(tmp_path / "conf"), "--sentinel", *words, "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"rediss+sentinel://127.0.0.1:{port}/mymaster/0?{files_of(certificates)}"
        settings = ProducerSettings(url=url)
        wait_until(lambda: connect(settings).ping(), "a sentinel")
        echoed(url, context, run)
    finally:
        process.kill()
        process.wait()
