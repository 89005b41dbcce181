"""The client for Node.js in examples/node, on real servers: its own tests, and servers that go away."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from echo import EchoWorker
from needs import GROUPS
from servers import KINDS
from test_batches import service
from waiting import wait_until

from producer.keys import Keys
from producer.transport import connection
from producer.transport.connection import script_text
from producer.transport.library import library

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "node"
pytestmark = pytest.mark.needs("node")
#: Sends each line's context and says what came of it, until standard input ends.
ASK = f"""
import {{ createInterface }} from 'node:readline';
import {{ Client }} from '{FOLDER}/client.mjs';
const client = await Client.connect();
const context = new Float32Array(5 * 768);
for (let row = 0; row < 5; row++) context[row * 768 + row] = 1;
const asked = [];
for await (const line of createInterface({{ input: process.stdin }})) {{
  const answer = client.predict(context, JSON.parse(line));
  asked.push(answer.then((one) => one.id, (error) => error.code).then((said) => console.log(said)));
}}
await Promise.all(asked);
await client.close();
"""


def node() -> str:
    group: Any = GROUPS["node"]
    return str(group.program())


@contextmanager
def asking(url: str) -> Iterator[tuple[Callable[..., None], Callable[[], str]]]:
    """A process of the client: `ask` sends a request with options, `said` waits for an outcome."""
    command = [node(), "--input-type=module", "--eval", ASK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env={**os.environ, "REDIS_URL": url}, text=True, **pipes) as process:  # type: ignore[call-overload]

        def ask(**options: Any) -> None:
            process.stdin.write(json.dumps(options) + "\n")
            process.stdin.flush()

        try:
            yield ask, lambda: process.stdout.readline().strip()
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, errors) == (0, "")


def waiting(server: Any) -> int:
    """The requests in the queue."""
    with server.client() as admin:
        return sum(admin.xlen(stream) for stream in Keys().levels)


def test_the_client_passes_its_own_tests(real_server: Any) -> None:
    real_server.admin.function_load(library(), replace=True)
    with service(real_server.url):
        done = subprocess.run(
            [node(), "--test", "--test-reporter=tap", str(FOLDER / "client.test.mjs")],
            env={**os.environ, "REDIS_URL": real_server.url},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stdout
    assert real_server.admin.xlen(Keys().truths) == 1
    assert not list(
        real_server.admin.scan_iter(Keys().replies_prefix + "*")
    )  # each client took its stream along


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_killed_and_started_again_loses_no_request(
    kind: str, make_server: Callable[..., Any]
) -> None:
    server = make_server(kind, arguments=("--appendonly", "yes", "--appendfsync", "always"))
    server.client().script_load(script_text("producer", "submit"))  # as a worker does
    with asking(server.url) as (ask, said):
        for number in range(20):
            ask(requestId=f"before-{number}")
        wait_until(lambda: waiting(server) == 20)
        server.kill()
        for number in range(20):
            ask(requestId=f"while-{number}")
        server.start()
        with EchoWorker(server.url) as worker:
            outcomes = {said() for _ in range(40)}
            assert outcomes == {f"{when}-{n}" for when in ("before", "while") for n in range(20)}
            assert len(worker.seen) == 40


def test_what_a_flush_took_is_told_as_lost(make_server: Callable[..., Any]) -> None:
    server = make_server()
    server.client().script_load(script_text("producer", "submit"))
    with asking(server.url) as (ask, said):
        for level in ("high", "normal", "low"):
            ask(deadlineMs=0, priority=level)
        ask(deadlineMs=0, requestId="named")
        wait_until(lambda: waiting(server) == 4)
        server.client().flushall()
        with EchoWorker(server.url) as worker:
            assert [said() for _ in range(4)] == ["request_lost"] * 4
            ask(deadlineMs=0, requestId="again")
            assert said() == "again"
            assert worker.seen == ["again"]


def test_the_names_of_the_scripts_are_those_of_their_files() -> None:
    text = (FOLDER / "client.mjs").read_text("utf-8")
    for name in ("submit", "cancel"):
        sha1 = hashlib.sha1(script_text("producer", name).encode(), usedforsecurity=False).hexdigest()
        assert sha1 in text, f"{name}.lua has another SHA-1 now: {sha1}"


def test_each_form_of_a_url_leads_to_the_same_place(make_server: Callable[..., Any]) -> None:
    server = make_server(tcp=True)
    server.client().execute_command("ACL", "SETUSER", "tea", "on", ">pa?s", "~*", "&*", "+@all")
    socket, host = server.url.removeprefix("unix://"), f"127.0.0.1:{server.port}"
    urls = [
        f"redis://tea:pa%3Fs@{host}/2",
        f"redis://{host}/0?db=2&username=tea&password=pa%3Fs",
        f"unix://tea:pa%3Fs@{socket}?db=2",
        f"unix://{socket}?db=2&username=tea&password=pa%3Fs",
        f"redis://{host}/?db=x",
    ]
    code = f"""
import {{ opened }} from '{FOLDER}/connection.mjs';
for (const url of process.argv.slice(1)) await opened(url).then(
  async (found) => {{ console.log(String(await found.sendCommand(['CLIENT', 'INFO']))); found.destroy(); }},
  ({{ code }}) => console.log(code));
"""
    command = [node(), "--input-type=module", "--eval", code, *urls]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    *found, last = [line for line in said if line]
    assert [re.findall(r" (?:db|user)=(\w+)", line) for line in found] == [["2", "tea"]] * 4
    assert last == "invalid_settings"


def test_its_lines_are_as_many_as_it_says_and_it_waits_out_what_a_producer_waits_out() -> None:
    names = ("client", "connection", "inflight", "losses", "messages", "replies")
    texts = {name: (FOLDER / f"{name}.mjs").read_text("utf-8") for name in names}
    lines = [line.strip() for text in texts.values() for line in text.splitlines()]
    count = sum(1 for line in lines if line and not line.startswith(("//", "*", "/*")))
    assert count < 300
    assert f"{count} lines of plain JavaScript" in (FOLDER / "README.md").read_text("utf-8")
    missing = [
        word
        for word in (*connection._PASSING, *connection._DENIED)
        if word.strip() not in texts["connection"]
    ]
    assert not missing
