"""The library of functions does what the scripts do: the same calls through both leave the same behind."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from echo import EchoWorker
from servers import KINDS, Server

from ops.app import run
from producer import Producer, ProducerSettings
from producer.keys import GROUP, Keys
from producer.transport.connection import script_text
from producer.transport.library import LIBRARY, library, scripts
from producer.transport.link import written

IDS = [f"r{n}" for n in range(60)]
#: Small limits, so that each level is refused now and then, by its entries and by its bytes.
LIMITS = (8, 3000, 60_000)
SPOILS = ["stream", "last id", "last id", "mend", "mend", "mend", "bytes"]


class Side:
    """One queue, whose scripts are called in one way.

    Attributes:
        call: Runs a script by its name, with a number of keys, the keys and the arguments.
    """

    def __init__(self, admin: redis.Redis, queue: str, call: Callable[..., Any]) -> None:
        self.admin, self.keys, self.call = admin, Keys(queue), call

    def act(self, action: str, *words: Any) -> Any:
        """Does one action, and gives what it returned, the ids of entries left out."""
        try:
            return getattr(self, action)(*words)
        except redis.ResponseError as error:
            return re.sub(r"\{\w+\}|script.*|[0-9a-f]{40}", "", str(error))

    def submit(self, client: str, *words: Any) -> Any:
        keys = (*self.keys.levels, *self.keys.counters[:3], self.keys.stats)
        return self.call("submit", 7, *keys, *LIMITS, self.keys.seen_prefix, client, *words)

    def cancel(self, client: str, request_id: str) -> Any:
        keys = (*self.keys.places, *self.keys.counters, self.keys.seen(request_id), self.keys.stats)
        return self.call("cancel", 12, *keys, client, GROUP)

    def lease(self, place: int) -> int:
        stream = self.keys.places[place]
        if self.admin.type(stream) == b"stream":
            self.admin.xgroup_create(stream, GROUP, "0", mkstream=True)
        return len(self.admin.xreadgroup(GROUP, "w", {stream: ">"}, count=1))

    def spoil(self, place: int, what: str) -> None:
        stream, counter = self.keys.places[place], self.keys.counters[place]
        if what == "stream":
            self.admin.set(stream, "no stream")
        elif what == "last id":
            self.admin.delete(stream)
            self.admin.xadd(stream, {"x": "y"}, id="18446744073709551615-18446744073709551615")
        elif what == "mend":
            self.admin.delete(stream, counter)
        else:
            self.admin.set(counter, "nonsense")

    def left(self) -> dict[str, Any]:
        """All keys of the queue, without what differs between two runs: ids of entries, and their times."""
        found: dict[str, Any] = {}
        for key in self.admin.scan_iter(f"amn:{{{self.keys.queue}}}:*"):
            name, kind = key.decode().partition("}")[2], self.admin.type(key)
            if kind == b"stream":
                found[name] = [fields for _, fields in self.admin.xrange(key)]
            elif kind == b"hash":
                found[name] = self.admin.hgetall(key)
            else:
                found[name] = re.sub(rb"\d+-\d+", b"ID", self.admin.get(key)), self.admin.pttl(key) > 0
        return found


def by_function(admin: redis.Redis) -> Callable[..., Any]:
    names = {one["name"]: one["function"] for one in scripts()}
    return lambda name, *words: admin.execute_command("FCALL", names[name], *words)


@pytest.fixture
def sides(real_server: Any) -> Iterator[tuple[Side, Side]]:
    admin = real_server.admin
    admin.function_load(library(), replace=True)
    shas = {one["name"]: admin.script_load(script_text("producer", str(one["name"]))) for one in scripts()}
    yield (
        Side(admin, "a", lambda name, *words: admin.execute_command("EVALSHA", shas[name], *words)),
        Side(admin, "b", by_function(admin)),
    )
    admin.function_flush()


def random_actions(source: random.Random, count: int) -> Iterator[tuple[Any, ...]]:
    words: list[Any] = []
    for _ in range(count):
        kind = source.random()
        client = source.choice(["me", "you"])
        if kind < 0.55:
            words = []
            for _ in range(source.randint(1, 4)):
                call = source.choice(["-", "c1", "c2"])
                words += [source.choice(IDS), source.randint(1, 3), call, b"x" * source.choice([0, 10, 900])]
            yield "submit", client, *words
        elif kind < 0.8:
            yield "cancel", client, source.choice(words[::4] or IDS)
        elif kind < 0.9:
            yield "lease", source.randrange(3)
        else:
            yield (
                "spoil",
                source.randrange(3),
                source.choice(["stream", "last id", "last id", "mend", "mend", "mend", "bytes"]),
            )


@pytest.mark.parametrize("seed", range(4))
def test_any_calls_return_and_leave_the_same_through_scripts_and_functions(
    sides: tuple[Side, Side], seed: int
) -> None:
    seen: Counter[str] = Counter()
    for action in random_actions(random.Random(seed), 250):
        results = [side.act(*action) for side in sides]
        assert results[0] == results[1], action
        assert sides[0].left() == sides[1].left(), action
        if action[0] in ("submit", "cancel"):
            found = results[0] if isinstance(results[0], list) else [results[0]]
            seen.update(f"{action[0]} {one}" for one in found)
    statuses = {f"submit {status}" for status in (1, 0, -1, -2)} | {"cancel 0", "cancel 1"}
    assert statuses <= seen.keys(), seen


def test_a_producer_that_calls_functions_has_its_requests_answered_refused_and_taken_back(
    sides: tuple[Side, Side], real_server: Any, contexts: Callable[..., Any]
) -> None:
    with Producer(settings=ProducerSettings(url=real_server.url)) as producer:
        channel: Any = producer.channels[0]
        for script, one in zip((channel.submit_script, channel._cancel_script), scripts(), strict=True):
            script.by_hash = written("FCALL", one["function"])
        real_server.admin.script_flush()
        handle = producer.submit(contexts(1)[0], request_id="mine")
        assert len(real_server.admin.xrange(Keys().requests)) == 1
        with EchoWorker(real_server.url):
            assert handle.result().id == "mine"
    assert real_server.admin.info("commandstats")["cmdstat_fcall"]["calls"]


def test_the_command_loads_the_library_again_and_again_and_prints_it(
    real_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run(["wire", "functions", "--load", "--url", real_server.url]) == 0
    assert "amn_submit_v1, amn_cancel_v1" in capsys.readouterr().out
    assert LIBRARY in str(real_server.admin.function_list())
    assert run(["wire", "functions", "--url", real_server.url]) == 0
    printed = capsys.readouterr().out
    real_server.admin.function_flush()
    assert real_server.admin.function_load(printed)
    real_server.admin.function_flush()


@pytest.mark.parametrize("kind", KINDS)
def test_functions_outlive_a_restart_of_the_server_and_scripts_do_not(kind: str) -> None:
    server = Server(kind, arguments=("--appendonly", "yes")).start()
    try:
        with server.client() as admin:
            admin.function_load(library())
            sha = admin.script_load(script_text("producer", "submit"))
            side = Side(admin, "a", by_function(admin))
            assert side.submit("me", "r", 2, "-", b"x") == [1]
        server.kill()
        server.start()
        with server.client() as admin:
            assert admin.script_exists(sha) == [False]
            side = Side(admin, "a", by_function(admin))
            assert side.submit("me", "r", 2, "-", b"x") == [1]
            assert admin.xlen(side.keys.requests) == 1
            assert side.cancel("me", "r") == 1
    finally:
        server.close()


def test_without_memory_functions_refuse_new_requests_and_still_take_back(sides: tuple[Side, Side]) -> None:
    admin = sides[0].admin
    for side in sides:
        assert side.submit("me", "r", 2, "-", b"x") == [1]
    admin.config_set("maxmemory", "1mb")
    admin.config_set("maxmemory-policy", "noeviction")
    try:
        time.sleep(0.01)
        for side in sides:
            assert "maxmemory" in str(side.act("submit", "me", "other", 2, "-", b"x"))
            assert side.cancel("me", "r") == 1
    finally:
        admin.config_set("maxmemory", "0")
    assert sides[0].left() == sides[1].left()
