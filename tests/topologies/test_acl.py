"""ACL: the service under the least rights that we ship, and what these keep a producer from."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import redis
from hostile import Hostile, selectors
from servers import KINDS, Server
from service import Service
from topology import wait_until

from ops.commands.acl import acl_line
from ops.errors import AclRefused
from ops.gateway.readiness import Looks
from ops.health.keys import repair
from ops.page.look import Looker
from ops.predict.truths import TruthReporter
from producer import AsyncProducer, Options, Producer, ProducerSettings
from producer.errors import AuthenticationFailed, RequestLost, ServerUnavailable, StreamUnusable
from producer.keys import GROUP, Keys
from producer.messages import PRIORITIES
from producer.protocol import wire
from producer.transport.connection import script_text
from producer.transport.library import library
from workers.engine.keeper import Keeper
from workers.engine.reads import load
from workers.settings import QueueSettings

ROOT = Path(__file__).resolve().parents[2]
KEYS = Keys()
PASSWORD = "sixteen-or-more-letters"
USERS = {
    "team-a": ("producer", "team-a"),
    "team-b": ("producer", "team-b"),
    "trusted": ("canceller", "trusted"),
    "gateway": ("gateway", "gateway"),
    "worker": ("worker", ""),
    "ops": ("ops", ""),
}


@dataclass(frozen=True)
class Guarded:
    """A server with an ACL file, without a default user."""

    server: Server

    def url(self, user: str) -> str:
        return f"redis://{user}:{PASSWORD}@127.0.0.1:{self.server.port}/0"

    def settings(self, user: str, **fields: Any) -> ProducerSettings:
        return ProducerSettings(url=self.url(user), client=USERS.get(user, ("", ""))[1], **fields)

    def client(self, user: str) -> redis.Redis:
        return redis.Redis(port=self.server.port, username=user, password=PASSWORD, protocol=2)


def started(kind: str, folder: Path) -> Guarded:
    lines = [
        acl_line(role, queues=["main"], user=user, password=PASSWORD, client=client)
        for user, (role, client) in USERS.items()
    ]
    # The administrator is the tests'; the default user is off, as docs/deploy.md has it.
    lines += ["user default off", f"user admin on >{PASSWORD} ~* &* +@all"]
    (folder / "users.acl").write_text("\n".join(lines) + "\n")
    return Guarded(Server(kind, tcp=True, arguments=("--aclfile", str(folder / "users.acl"))).start())


@pytest.fixture(scope="module", params=KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    one = started(request.param, tmp_path_factory.mktemp("acl"))
    yield one
    one.server.close()


@pytest.fixture(scope="module")
def workers(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real worker of each kind, as the user of its role."""
    logs = tmp_path_factory.mktemp("workers")
    environment = {**os.environ, "REDIS_URL": guarded.url("worker"), "OMP_NUM_THREADS": "1"}
    with ExitStack() as undo:
        for kind in ("amn", "fallback", "shadow"):
            log = undo.enter_context((logs / kind).open("wb"))
            command = [sys.executable, "-m", "workers", kind, "--artifacts", f"{ROOT}/artifacts/lvm"]
            command += ["--policy", "card"] if kind == "amn" else []  # it escalates much
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            undo.callback(process.wait)
            undo.callback(process.terminate)
        with guarded.client("admin") as admin:
            wait_until(lambda: len(list(admin.scan_iter(KEYS.workers_prefix + "*"))) == 3, "three workers")
        yield


@pytest.fixture
def denials(guarded: Guarded) -> Iterator[Callable[[], list[str]]]:
    """What was refused in this test, but for CLIENT SETINFO, which names the driver, and CONFIG GET.

    The doctor asks for a limit in the configuration, which also holds passwords, and does without.
    """
    with guarded.client("admin") as admin:
        admin.acl_log_reset()

        def refused() -> list[str]:
            found = [
                {str(k): v for k, v in zip(row[::2], row[1::2], strict=True)}
                if isinstance(row, list)
                else row
                for row in admin.acl_log(count=100)
            ]
            return [str(row) for row in found if "setinfo" not in str(row) and "config|get" not in str(row)]

        yield refused


def sample(n: int) -> tuple[Any, list[Options]]:
    """Real contexts of one document, each the truth of the one before."""
    vectors = np.load(ROOT / "artifacts" / "sample" / "sequences.npz")["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    contexts = [vectors[i : i + 5] for i in range(n)]
    return contexts, [Options(sequence="document", position=i + 4, normalize=True) for i in range(n)]


def test_a_client_written_from_the_document_needs_no_more_than_a_producer_s_rights(
    guarded: Guarded, denials: Callable[[], list[str]], contexts: Callable[..., Any]
) -> None:
    """Every command of docs/wire.md, by hand; a name of another team is noticed by one read before."""
    replies, reply_to = KEYS.replies("team-a.0123456789abcdef"), "team-a.0123456789abcdef"
    script = (ROOT / "producer" / "lua" / "submit.lua").read_bytes()
    message = {"version": 1, "id": "raw-1", "reply_to": reply_to, "dtype": "f4", "shape": [5, 768]}
    message |= {"context": contexts(1)[0].tobytes(), "encoder": "all-mpnet-base-v2/mean/l2"}

    def submit(client: redis.Redis, name: str, **changes: Any) -> Any:
        keys = (*KEYS.levels, *KEYS.counters[:3], KEYS.stats)
        words = (*keys, 100000, 2147483648, 60000, KEYS.seen_prefix, "any-text", name, 2, "-")
        sha1 = hashlib.sha1(script, usedforsecurity=False).hexdigest()
        payload = msgpack.packb(message | {"id": name} | changes)
        return client.execute_command("EVALSHA", sha1, len(keys), *words, payload)

    with guarded.client("admin") as admin:
        admin.script_flush()
    with guarded.client("team-a") as client:
        client.execute_command("TIME")
        assert not client.xread({replies: "0-0"}, block=1)
        with pytest.raises(redis.exceptions.NoScriptError):
            submit(client, "raw-0")
        with Service(guarded.settings("worker")):
            wait_until(lambda: _sent(lambda: submit(client, "raw-1")), "a worker that loads the script")
            assert submit(client, "raw-2", tokens=1.5) == [1]
            found: dict[str, Any] = {}
            while len(found) < 2:
                for _, rows in client.xread({replies: "0-0"}, count=512, block=5000):
                    for entry_id, fields in rows:
                        reply = msgpack.unpackb(fields[b"reply"])
                        found[reply["id"]] = reply
                        client.xdel(replies, entry_id)
        assert found["raw-1"]["status"] == "answered"
        assert (found["raw-2"]["code"], found["raw-2"]["status"]) == ("undecodable", "failed")
        client.hgetall(KEYS.standing)
        truth = {"kind": "truth", "key": "raw-1", "vector": found["raw-1"]["vector"]}
        client.xadd(KEYS.truths, truth, maxlen=20000)
        client.delete(replies)
        assert denials() == []
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.xread({KEYS.replies("me"): "0-0"}, block=1)


def _sent(submit: Callable[[], Any]) -> bool:
    try:
        return bool(submit() == [1])
    except redis.exceptions.NoScriptError:
        return False


def test_the_document_names_the_rights_of_a_producer(guarded: Guarded) -> None:
    """Each command in the table of docs/wire.md is allowed on its key, and no EVAL, SCRIPT LOAD or XRANGE."""
    text = (ROOT / "docs" / "wire.md").read_text("utf-8").partition("## Connecting")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    tried = []
    with guarded.client("admin") as admin:

        def may(*words: str) -> bool:
            return bool(admin.execute_command("ACL", "DRYRUN", "team-a", *words) == b"OK")

        for _, commands, *on in rows:
            key = re.sub(r"\*$", "x", "".join(re.findall(r"`(amn:\S+)`", on[0])[:1])) if on else ""
            for command in re.findall(r"`([A-Z]+)`", commands):
                words = {"XREAD": ["STREAMS", key, "0"], "XADD": [key, "*", "a", "b"], "SELECT": ["0"]}
                words |= {
                    "XDEL": [key, "1-1"],
                    "PEXPIRE": [key, "1"],
                    "EVALSHA": ["0" * 40, "0"],
                    "FCALL": ["x", "0"],
                }
                assert may(command, *words.get(command, [key] if key else [])), (command, key)
                tried.append(command)
        for refused in ("EVAL x 0", "SCRIPT LOAD x", "FUNCTION LOAD x", "SCAN 0"):
            assert not may(*refused.split())
        assert not may("XRANGE", KEYS.replies("team-a.x"), "-", "+")
    assert {"EVALSHA", "XREAD", "XDEL", "DEL", "HGETALL", "TIME"} <= set(tried)


def test_a_gateway_sees_the_workers_asks_and_takes_back(
    guarded: Guarded, workers: None, denials: Callable[[], list[str]]
) -> None:
    settings = guarded.settings("gateway")
    with Looks([settings]) as look:
        wait_until(lambda: len(look()["main"]) == 1, "a worker that reads")
    with Producer(settings=settings) as producer:
        assert producer.predict(sample(1)[0][0]).served_by
        handle = producer.submit(sample(1)[0][0])
        assert producer.cancel(handle.id) in (True, False)
    assert denials() == []


def test_a_producer_with_the_least_rights_is_told_what_the_server_lost(
    guarded: Guarded, denials: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.session.inflight.OVERDUE_S", 0.2)
    monkeypatch.setattr("producer.session.inflight.SWEEP_S", 0.1)
    [context], _ = sample(1)
    with guarded.client("worker") as worker, guarded.client("admin") as admin:
        admin.script_load(script_text("producer", "submit"))
        standing = worker.register_script(load("standing").text)
        with Producer(settings=guarded.settings("team-a")) as producer:
            handle = producer.submit(context, normalize=True)
            admin.flushall()

            def told() -> bool:
                standing(keys=[*KEYS.places, KEYS.standing], args=[10_000, 0])
                return handle.done()

            wait_until(told, "told")
            with pytest.raises(RequestLost):
                handle.result()
    assert denials() == []


@pytest.mark.slow
def test_the_whole_service_runs_with_the_least_rights(
    guarded: Guarded, workers: None, denials: Callable[[], list[str]], run: Callable[[Any], Any], amn: Any
) -> None:
    contexts, options = sample(300)
    with Producer(settings=guarded.settings("team-a")) as producer:
        assert producer.client_id.startswith("team-a.")
        handles: list[Any] = []
        served: set[str] = set()

        def both_models_answer() -> bool:
            # A worker that has just started was granted no escalations yet.
            handles[:] = producer.submit_many(contexts, options=options)
            served.update(handle.result(60_000).served_by for handle in handles)
            return len(served) > 1

        wait_until(both_models_answer, "the fallback's answers too")
        for handle, context in zip(handles, contexts, strict=True):
            producer.report_truth(handle, context[-1])

    async def ask() -> Any:
        async with AsyncProducer(settings=guarded.settings("team-b")) as other:
            return await other.predict(contexts[0], normalize=True)

    assert run(ask()).vector.shape == (768,)
    with Producer(settings=guarded.settings("trusted")) as producer:
        assert producer.cancel("nothing-of-that-name") is False
    doctor = amn("doctor", "--json", REDIS_URL=guarded.url("ops"))
    assert '"server":' in doctor.stdout, doctor.stderr
    assert amn("dlq", "list", "--json", REDIS_URL=guarded.url("ops")).returncode == 0
    assert amn("jobs", "list", REDIS_URL=guarded.url("ops")).returncode == 0
    assert amn("drift", "status", "--json", REDIS_URL=guarded.url("ops")).stdout.startswith("{")
    with guarded.client("admin") as admin:
        wait_until(
            lambda: (
                admin.xlen(KEYS.shadow) + admin.xlen(KEYS.truths) == 0 and admin.zcard(KEYS.drift_minutes)
            ),
            "shadow sums",
        )
    assert denials() == []


def test_ops_brings_a_dead_letter_back(
    guarded: Guarded, workers: None, denials: Callable[[], list[str]], amn: Any
) -> None:
    with guarded.client("admin") as admin:
        admin.xadd(KEYS.requests, {"request": b"not a request", "id": b"x"})
        wait_until(lambda: admin.xlen(KEYS.dead) == 1, "a dead letter")
        url = guarded.url("ops")
        assert "undecodable" in amn("dlq", "list", REDIS_URL=url).stdout
        with guarded.client("ops") as client:  # the page
            looker = Looker(client, guarded.settings("ops"))
            [letter] = looker.look().letters
            assert looker.letter(letter.id)["reason"] == letter.reason == "undecodable"
        amn("dlq", "replay", "--all", REDIS_URL=url)
        wait_until(lambda: admin.xlen(KEYS.dead) == 1, "the same letter again")
        purged = amn("dlq", "purge", "--all", "--yes", REDIS_URL=url)
        assert admin.xlen(KEYS.dead) == 0, purged.stderr
    assert denials() == []


def test_a_file_may_look_how_many_samples_wait(guarded: Guarded, denials: Callable[[], list[str]]) -> None:
    with (
        Producer(settings=guarded.settings("team-a")) as producer,
        TruthReporter(producer, "low", "domain") as truths,
    ):
        assert truths.finish()["lost"] == {}
    assert denials() == []


FORBIDDEN = {
    "read requests": ("XRANGE", KEYS.requests, "-", "+"),
    "read requests as a stream": ("XREAD", "STREAMS", KEYS.requests, "0"),
    "lease": ("XREADGROUP", "GROUP", GROUP, "me", "STREAMS", KEYS.requests, ">"),
    "ack": ("XACK", KEYS.requests, GROUP, "1-1"),
    "reclaim": ("XAUTOCLAIM", KEYS.requests, GROUP, "me", "0", "0-0"),
    "claim": ("XCLAIM", KEYS.requests, GROUP, "me", "0", "1-1"),
    "delete an entry": ("XDEL", KEYS.requests, "1-1"),
    "trim": ("XTRIM", KEYS.requests, "MAXLEN", "0"),
    "delete the queue": ("DEL", KEYS.requests),
    "unlink the queue": ("UNLINK", KEYS.requests),
    "expire the queue": ("PEXPIRE", KEYS.requests, "1"),
    "rename the queue": ("RENAME", KEYS.requests, KEYS.replies("team-a.x")),
    "copy the queue": ("COPY", KEYS.requests, KEYS.replies("team-a.x")),
    "destroy the group": ("XGROUP", "DESTROY", KEYS.requests, GROUP),
    "escalate": ("XADD", KEYS.fallback, "*", "request", "x"),
    "read the fallback": ("XRANGE", KEYS.fallback, "-", "+"),
    "read the shadow": ("XRANGE", KEYS.shadow, "-", "+"),
    "forge a prediction": ("XADD", KEYS.shadow, "*", "kind", "prediction"),
    "read the truths": ("XRANGE", KEYS.truths, "-", "+"),
    "add a stream": ("XADD", KEYS.requests + ":mine", "*", "request", "x"),
    "add a counter": ("INCRBY", KEYS.requests_bytes + ":mine", "1"),
    "count for the fallback": ("INCRBY", KEYS.fallback_bytes, "1"),
    "read the dead letters": ("XRANGE", KEYS.dead, "-", "+"),
    "read another's replies": ("XREAD", "STREAMS", KEYS.replies("team-b.x"), "0"),
    "read another's replies as a range": ("XRANGE", KEYS.replies("team-b.x"), "-", "+"),
    "read replies of a longer name": ("XREAD", "STREAMS", KEYS.replies("team-a-b.x"), "0"),
    "read replies without a name": ("XREAD", "STREAMS", KEYS.replies("x"), "0"),
    "write another's replies": ("XADD", KEYS.replies("team-b.x"), "*", "reply", "x"),
    "delete another's replies": ("DEL", KEYS.replies("team-b.x")),
    "read the counters": ("HGETALL", KEYS.stats),
    "pretend to be a worker": ("HSET", KEYS.worker("amn-x"), "kind", "amn"),
    "read another queue": ("XLEN", "amn:{other}:requests"),
    "write another queue": ("XADD", "amn:{other}:requests", "*", "request", "x"),
    "list keys": ("KEYS", "*"),
    "walk keys": ("SCAN", "0"),
    "flush": ("FLUSHALL",),
    "configure": ("CONFIG", "SET", "maxmemory", "1"),
    "read the configuration": ("CONFIG", "GET", "*"),
    "run Lua": ("EVAL", "return 1", "0"),
    "load functions": ("FUNCTION", "LOAD", "#!lua name=x"),
    "load Lua": ("SCRIPT", "LOAD", "return 1"),
    "flush scripts": ("SCRIPT", "FLUSH"),
    "load a function": ("FUNCTION", "LOAD", "x"),
    "watch everybody": ("MONITOR",),
    "kill others": ("CLIENT", "KILL", "TYPE", "normal"),
    "list others": ("CLIENT", "LIST"),
    "stall everybody": ("CLIENT", "PAUSE", "1000"),
    "change users": ("ACL", "SETUSER", "team-a", "+@all"),
    "list users": ("ACL", "LIST"),
    "stop the server": ("SHUTDOWN", "NOSAVE"),
    "replicate elsewhere": ("REPLICAOF", "127.0.0.1", "1"),
    "info": ("INFO",),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_producer_cannot(what: str, guarded: Guarded) -> None:
    with guarded.client("team-a") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*FORBIDDEN[what])


def test_a_worker_s_script_does_nothing_in_a_producer_s_hands(guarded: Guarded, workers: None) -> None:
    from workers.engine.reads import load

    with guarded.client("team-a") as client, guarded.client("admin") as admin:
        for name, arguments in {
            "release": (1, KEYS.requests, GROUP, "amn", "me"),
            "reclaim": (1, KEYS.requests, GROUP, "me", 0, 10, "0-0"),
        }.items():
            admin.script_load(load(name).text)
            with pytest.raises(redis.exceptions.ResponseError, match=r"can't run|ACL failure"):
                client.execute_command("EVALSHA", load(name).sha, *arguments)


def test_a_function_has_its_caller_s_rights_and_no_role_loads_or_flushes_one(guarded: Guarded) -> None:
    keys = (*KEYS.levels, *KEYS.counters[:3], KEYS.stats)
    limits = (100000, 2147483648, 60000, KEYS.seen_prefix, "any-text")
    places = (*KEYS.places, *KEYS.counters)
    with guarded.client("admin") as admin:
        admin.function_load(library(), replace=True)
        assert admin.execute_command("ACL", "DRYRUN", "ops", "FUNCTION", "LIST") == b"OK"
        for user in USERS:
            for words in (["LOAD", "x"], ["FLUSH"], ["DELETE", "amn_v1"], ["RESTORE", "x"]):
                tried = "ACL", "DRYRUN", user, "FUNCTION", *words
                assert admin.execute_command(*tried) != b"OK", tried
    with guarded.client("team-a") as client, guarded.client("trusted") as trusted:
        submit = "FCALL", "amn_submit_v1", len(keys), *keys, *limits
        assert client.execute_command(*submit, "by-function", 2, "-", b"x") == [1]
        taking_back, again = (
            ("FCALL", "amn_cancel_v1", 12, *places, KEYS.seen(name), KEYS.stats, "any-text", GROUP)
            for name in ("by-function", "by-another")
        )
        with pytest.raises(redis.exceptions.ResponseError, match=r"can't run|ACL failure"):
            client.execute_command(*taking_back)
        with trusted.pipeline() as pipe:  # as one step, so that no worker has it first
            pipe.execute_command(*submit, "by-another", 2, "-", b"x").execute_command(*again)
            assert pipe.execute() == [[1], 1]
        with pytest.raises(redis.exceptions.ResponseError, match=r"NOPERM|permission"):
            client.execute_command("FCALL", "amn_submit_v1", 1, Keys("other").requests)


def test_a_producer_takes_nothing_back_and_hears_why(guarded: Guarded) -> None:
    with Producer(settings=guarded.settings("team-a")) as producer:
        guarded.client("admin").xtrim(KEYS.requests, maxlen=0)
        handle = producer.submit(np.eye(5, 768, dtype=np.float32))
        with pytest.raises(AuthenticationFailed, match="this command"):
            producer.cancel(handle)


def test_a_client_name_of_another_team_gets_no_replies(guarded: Guarded) -> None:
    settings = ProducerSettings(url=guarded.url("team-a"), client="team-b")
    with pytest.raises(AuthenticationFailed, match="AMN_CLIENT"):
        Producer(settings=settings).start()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["sync", "asyncio"])
def test_a_producer_waits_for_the_worker_that_loads_its_script(
    kind: str, how: str, tmp_path: Path, run: Callable[[Any], Any]
) -> None:
    guarded, context = started(kind, tmp_path), np.eye(5, 768, dtype=np.float32)
    settings = guarded.settings("team-a", retry_ms=100)

    async def ask() -> Any:
        async with AsyncProducer(settings=settings) as producer:
            with pytest.raises(ServerUnavailable, match="a worker does that"):
                await producer.submit(context)
            with Service(guarded.settings("worker")):
                return await (await producer.submit(context, block=True)).result()

    try:
        if how == "asyncio":
            assert run(ask()).vector.shape == (768,)
            return
        with Producer(settings=settings) as producer:
            with pytest.raises(ServerUnavailable, match="a worker does that"):
                producer.submit(context)
            with Service(guarded.settings("worker")):
                assert producer.submit(context, block=True).result().vector.shape == (768,)
    finally:
        guarded.server.close()


def test_an_acl_cannot_keep_a_producer_from_trimming(guarded: Guarded) -> None:
    """The limit that docs/deploy.md names: who may append to a stream may also trim it."""
    with guarded.client("team-a") as client, client.pipeline() as pipe:
        for _ in range(3):
            pipe.xadd(KEYS.requests, {"request": b"x"})
        pipe.xlen(KEYS.requests)
        pipe.xadd(KEYS.requests, {"request": b"x"}, maxlen=1, approximate=False)
        pipe.xlen(KEYS.requests)
        *_, before, _, after = pipe.execute()
    assert before >= 3
    assert after == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": "short"},
        {"user": "a b"},
        {"queues": ["main", "a}b"]},
        {"client": "a.b"},
        {"client": "a*"},
    ],
    ids=str,
)
def test_what_would_widen_a_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AclRefused):
        acl_line("producer", **{"queues": ["main"], "user": "u", "password": PASSWORD} | wrong)


def test_the_command_prints_the_line_and_not_the_password(amn: Any) -> None:
    ended = amn("acl", "producer", "--user", "team-a", AMN_ACL_PASSWORD=PASSWORD)
    assert ended.stdout == acl_line("producer", queues=["main"], user="team-a", password=PASSWORD) + "\n"
    assert PASSWORD not in ended.stdout + ended.stderr


def test_partitions_are_named_one_by_one(guarded: Guarded) -> None:
    line = acl_line("producer", queues=["main.p0", "main.p1"], user="u", password=PASSWORD, client="c")
    name = "u"
    with guarded.client("admin") as admin:
        admin.execute_command("ACL", "SETUSER", name, *selectors(line)[1:])
        for queue, may in (("main.p0", True), ("main.p1", True), ("main.p2", False), ("main", False)):
            answer = admin.execute_command("ACL", "DRYRUN", name, "XADD", Keys(queue).requests, "*", "a", "b")
            assert (answer == b"OK") is may
        admin.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flush_of_the_scripts_is_not_noticed(kind: str, tmp_path: Path) -> None:
    """By a producer that may run only what the server knows, with the time that it tries again by itself."""
    guarded, context = started(kind, tmp_path), np.eye(5, 768, dtype=np.float32)
    try:
        with (
            Service(guarded.settings("worker"), lease_ms=QueueSettings().lease_ms) as service,
            Producer(settings=guarded.settings("team-a")) as producer,
        ):
            keeper = Keeper(service.loop, {})
            keeper.start()
            for _ in range(3):
                producer.submit(context, block=True).result()
                guarded.client("admin").script_flush()
                assert producer.submit(context).result().vector.shape == (768,)
            keeper.stop()
    finally:
        guarded.server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_producer_stops_and_repeats_nobody_s_end(
    kind: str, tmp_path: Path, contexts: Callable[..., Any]
) -> None:
    """It does what its rights allow, at random; whoever operates the queue mends it when it is named."""
    guarded, finals, asked = started(kind, tmp_path), Counter[str](), 0
    settings = guarded.settings("team-b", result_timeout_ms=20_000)
    try:
        with (
            Service(guarded.settings("worker")),
            Producer(settings=settings) as producer,
            guarded.client("team-a") as bad,
            guarded.client("ops") as ops,
        ):
            producer.submit(contexts(1)[0], block=True).result()
            take = producer.channels[0].inflight.on_reply
            producer.channels[0].inflight.on_reply = lambda payload, entry_id: (  # type: ignore[method-assign]
                finals.update([wire.decode_reply(payload).id]),
                take(payload, entry_id),
            )[1]
            hostile, handles = Hostile(bad, "team-a.x", seed=7), []
            for turn in range(60):
                for _ in range(8):
                    hostile.act()
                options = [Options(request_id=f"r{turn}-{n}", priority=PRIORITIES[n % 3]) for n in range(6)]
                while options:
                    try:
                        handles += producer.submit_many(contexts(len(options)), options=options, block=True)
                        options = []
                    except StreamUnusable as error:
                        handles += error.accepted
                        got_in = {handle.id for handle in error.accepted}
                        options = [one for one in options if one.request_id not in got_in]
                        asked += 1
                        assert repair(ops, guarded.settings("ops"))
            for handle in handles:
                handle.result()
            assert len(handles) == 360
            assert set(finals.values()) == {1}
            assert len(finals) == 360
            assert producer.stray_replies == 0
        assert hostile.done > 100
        assert asked > 5  # so often it had to be mended
    finally:
        guarded.server.close()
