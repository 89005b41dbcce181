"""docs/deploy.md: each snippet is run, or at least read by what it is meant for."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import redis
from documents import blocks
from redis.crc import key_slot
from servers import KINDS, Server, free_port, need
from service import Service
from topology import Certificates, Cluster, plain, wait_until

from ops.app import app
from ops.commands.acl import acl_line
from producer import ProducerSettings
from producer.address import parse_address
from producer.partitions import partition_queues
from producer.settings import _TLS_VARIABLES, _VARIABLES

ROOT = Path(__file__).resolve().parents[2]
FENCES = [(block.language, block.text) for block in blocks("docs/deploy.md")]
NODES = "10.0.0.5:6379,10.0.0.6:6379,10.0.0.7:6379"


def snippets(language: str) -> list[str]:
    found = [text for name, text in FENCES if name == language]
    assert found, language
    return found


def lines_of(language: str) -> list[str]:
    lines = [line.partition(" #")[0].strip() for text in snippets(language) for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def files(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page has in /etc/amn."""
    folder = tmp_path_factory.mktemp("etc")
    for name, file in {"ca.pem": certificates.ca, "server.pem": certificates.server,
                       "server.key": certificates.server_key, "client.pem": certificates.client,
                       "client.key": certificates.client_key}.items():  # fmt: skip
        (folder / name).write_bytes(Path(file).read_bytes())
    line = acl_line("worker", queues=["main"], user="worker", password="sixteen-letters-or-more")
    (folder / "users.acl").write_text("user default on nopass ~* &* +@all\n" + line + "\n")
    (folder / "redis.conf").write_bytes((ROOT / "ops" / "deploy" / "redis.conf").read_bytes())
    return folder


def test_every_kind_of_snippet_is_known_here() -> None:
    assert {name for name, _ in FENCES} == {"url", "sh", "python", "json", "conf redis", "conf sentinel"}


def test_every_address_can_be_used() -> None:
    kinds = [parse_address(ProducerSettings(url=url).url).kind for url in lines_of("url")]
    assert kinds == ["tcp", "tcp", "unix", "sentinel", "cluster"]


@pytest.mark.parametrize("line", [line for line in lines_of("sh") if line.startswith("export")])
def test_every_variable_is_one_that_we_read(line: str) -> None:
    name, _, value = line.removeprefix("export ").partition("=")
    known = {*_VARIABLES.values(), *_TLS_VARIABLES.values(), "AMN_ACL_PASSWORD"}
    assert name in known
    if name == "REDIS_URL":
        ProducerSettings(url=value.strip("'"))


@pytest.mark.parametrize("line", [line for line in lines_of("sh") if line.startswith("amn")])
def test_every_command_has_these_arguments(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://10.0.0.5:6379/0")  # the page has it set
    words, command = line.partition(" >>")[0].split()[1:], app
    context = click.Context(app)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
    with command.make_context(name, words):
        pass


def test_every_line_of_a_shell_snippet_is_looked_at() -> None:
    assert {line.split()[0] for line in lines_of("sh")} == {"amn", "export", "redis-cli"}


#: Each on each kind of server, but for TLS, without which the wheel's Valkey is built.
CONFIGURATIONS = [
    pytest.param(text, *kind.values, marks=kind.marks, id=f"{text.split()[0]}-{kind.values[0]}")
    for text in snippets("conf redis")
    for kind in KINDS
    if "tls-port" not in text or kind.marks
]


@pytest.mark.parametrize(("text", "kind"), CONFIGURATIONS)
def test_a_server_starts_with_every_configuration(text: str, kind: str, files: Path, tmp_path: Path) -> None:
    text = text.replace("/etc/amn", str(files)).replace("/var/lib/redis", str(tmp_path))
    port, bus = free_port(), free_port()
    text = re.sub(r"port 6379", f"port {port}", text)
    (tmp_path / "conf").write_text(text)
    words = ["--dir", str(tmp_path), "--unixsocket", str(tmp_path / "s"), "--cluster-port", str(bus)]
    words += ["--bind", "127.0.0.1"] + ([] if f"port {port}" in text else ["--port", "0"])
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([need(kind), str(tmp_path / "conf"), *words], stdout=log, stderr=log)
    try:
        with redis.Redis(unix_socket_path=str(tmp_path / "s")) as client:
            wait_until(lambda: process.poll() is not None or client.ping(), (tmp_path / "log").read_text())
            assert process.poll() is None, (tmp_path / "log").read_text()
            for line in text.splitlines():
                name, _, value = line.partition(" ")
                if name in ("min-replicas-to-write", "min-replicas-max-lag", "cluster-node-timeout"):
                    assert client.config_get(name) == {name: value}
            if "include" in text:
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                assert client.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_configuration_is_understood(kind: str, make_server: Any) -> None:
    server = make_server(kind, arguments=("--include", str(ROOT / "ops" / "deploy" / "redis.conf")))
    with server.client() as client:
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        assert client.info("persistence")["aof_enabled"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentinel_starts_with_its_configuration(kind: str, tmp_path: Path) -> None:
    (text,) = snippets("conf sentinel")
    port = free_port()
    (tmp_path / "conf").write_text(text.replace("26379", str(port)))
    words = [need(kind), str(tmp_path / "conf"), "--sentinel", "--dir", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with plain(port) as sentinel:
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            wait_until(lambda: sentinel.execute_command(*question)[1] == b"6379", "a sentinel")
    finally:
        process.kill()
        process.wait()


def run_as_written(text: str) -> dict[str, Any]:
    """What the snippet has made, by name."""
    names: dict[str, Any] = {"context": np.eye(5, 768, dtype=np.float32)}
    exec(text, names)
    assert names["reply"].vector.shape == (768,)
    return names


@pytest.mark.needs("redis-server")  # for TLS
def test_the_snippet_for_tls_runs(files: Path, certificates: Certificates) -> None:
    secure, _ = snippets("python")
    port = free_port()
    words = ("--tls-port", str(port), "--tls-cert-file", certificates.server, "--tls-key-file")
    words += (certificates.server_key, "--tls-ca-cert-file", certificates.ca)
    with ExitStack() as undo:
        server = Server("redis", arguments=words).start()
        undo.callback(server.close)
        undo.enter_context(Service(ProducerSettings(url=server.url)))
        run_as_written(
            secure.replace("/etc/amn", str(files)).replace("queue.internal:6379", f"127.0.0.1:{port}")
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_for_a_cluster_runs(kind: str) -> None:
    _, clustered = snippets("python")
    with ExitStack() as undo:
        cluster = Cluster(kind, key_slot(b"main.p0"))
        undo.callback(cluster.close)
        for queue in partition_queues("main", 6):
            undo.enter_context(Service(ProducerSettings(url=cluster.url, queue=queue)))
        assert len(run_as_written(clustered.replace(NODES, cluster.place))["replies"]) == 1


@pytest.mark.needs("redis-server")  # redis-cli comes with it
def test_the_command_that_makes_a_cluster_makes_one() -> None:
    (line,) = [line for line in lines_of("sh") if line.startswith("redis-cli")]
    with ExitStack() as undo:
        ports = []
        for _ in range(3):
            port = free_port()  # the command assumes that the bus is 10,000 above
            words = ("--cluster-enabled", "yes", "--port", str(port))
            undo.callback(Server("redis", tcp=True, arguments=words).start().close)
            ports.append(port)
        for place, port in zip(NODES.split(","), ports, strict=True):
            line = line.replace(place, f"127.0.0.1:{port}")
        made = subprocess.run(line.split(), capture_output=True, text=True, timeout=60, check=False)
        assert "All 16384 slots covered" in made.stdout, made.stdout + made.stderr
