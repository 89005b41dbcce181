"""The page's process as browsers and strangers meet it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import redis
from rig import KEYS, Rig, answer, show_worker
from served import listening, served
from structlog.testing import capture_logs

from ops.alerts import AlertSettings, apply
from ops.deadletters import DeadLetters
from ops.findings import Finding
from ops.leader import leader_key
from ops.page import app
from ops.page.actions import Actions
from ops.page.app import page
from ops.page.feed import Feed
from ops.page.guard import Doorkeeper
from ops.page.serve import CONNECTIONS_MAX
from ops.web import protocol
from producer.errors import ServerError
from producer.settings import ProducerSettings
from workers.pool.child import our_environment, our_python

TOKEN = "a-token-of-twenty-four-chars"
ACTS = {"x-amn-page": "1", "authorization": f"Bearer {TOKEN}"}


def dashboard(url: str, *words: str, token: str = "") -> Any:
    """A process of `amn dashboard`, and a client of its page."""
    return listening("dashboard", *words, REDIS_URL=url, AMN_DASHBOARD_TOKEN=token)


def test_the_page_shows_itself_to_its_own_names_alone(real_server: Any) -> None:
    with dashboard(real_server.url, "--name", "amn.example.com") as (client, process):
        for name in ("localhost", "127.0.0.1:80", "[::1]:9465", "amn.example.com", "AMN.example.com:443"):
            assert client.get("/healthz", headers={"host": name}).status_code == 200, name
        for name in ("evil.example.com", "localhost.evil.example.com", "", "127.0.0.1.nip.io"):
            assert client.get("/api/snapshot", headers={"host": name}).status_code == 421, name
        front = client.get("/")
        assert front.headers["content-type"].startswith("text/html")
        policy = front.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        snapshot = client.get("/api/snapshot").json()
        assert (snapshot["queue"], snapshot["reachable"], snapshot["actions"]) == ("main", True, False)
        assert client.get("/api/history").json()["at_ms"] == []
        assert client.get("/api/actions/purge").status_code == 404
        assert client.post("/api/actions/purge", json={}).status_code in (404, 405)
        with client.stream("GET", "/api/events") as events:
            lines = events.iter_lines()
            assert next(lines) == "event: snapshot"
            assert json.loads(next(lines).removeprefix("data: "))["version"] == 1
            process.terminate()  # also while somebody watches
            assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("maxmemory", 1, "The server's memory is nearly full: "),
        ("min-replicas-to-write", 1, "The server takes no requests: min-replicas-to-write, and no replica"),
        ("replicaof", "127.0.0.1 1", "The server takes no requests: this server is a replica"),
    ],
)
def test_a_server_that_takes_nothing_is_told_and_no_worker_is_blamed(
    real_rig: Rig, name: str, value: Any, words: str
) -> None:
    show_worker(real_rig.admin, "amn-1", {"kind": "amn"})
    if name == "replicaof":
        real_rig.admin.replicaof(*value.split())
    else:
        real_rig.admin.config_set(name, value)
    try:
        with dashboard(real_rig.url) as (client, _):
            verdict = client.get("/api/snapshot").json()["verdict"]
    finally:
        if name == "replicaof":
            real_rig.admin.replicaof("NO", "ONE")
        else:
            real_rig.admin.config_set(name, 0)
    assert verdict["state"] == "broken", verdict
    assert verdict["sentence"].startswith(words)


def test_what_strangers_wrote_is_shown_as_text_or_left_out(real_rig: Rig) -> None:
    script, admin = "<script>alert(1)</script>", real_rig.admin
    show_worker(admin, "amn-1", {"kind": "amn", "pid": "x", "seen_at_ms": "y", "lease_ms": "1.5"})
    show_worker(admin, script, {"kind": script, "model": script, "host": script})
    admin.rpush(
        KEYS.failures, "no JSON", "[]", json.dumps({"kind": script, "host": 7, "text": script, "at_ms": 1})
    )
    admin.xadd(KEYS.dead, {"reason": script, "message": script, "source": script})
    with dashboard(real_rig.url) as (client, _):
        found = client.get("/api/snapshot")
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-content-type-options"] == "nosniff"
    snapshot = found.json()
    assert {one["name"] for one in snapshot["workers"]} == {"amn-1", script}
    assert snapshot["dead"]["newest"][0]["message"] == script
    assert f"{script} on 7" in str(snapshot["findings"])


def test_with_a_token_only_those_who_know_it_see_anything(real_server: Any) -> None:
    with dashboard(real_server.url, token=TOKEN) as (client, process):
        assert client.get("/healthz").status_code == 200
        for path in ("/api/snapshot", "/api/events", "/api/history", "/page.js", "/api/letters/1-1"):
            assert client.get(path).status_code == 401, path
        assert client.get("/").headers["location"] == "/login"
        assert "form" in client.get("/login").text
        # With "no-referrer", a browser sends the form with the origin "null", which is refused.
        assert client.get("/login").headers["referrer-policy"] == "same-origin"
        assert client.post("/login", data={"token": "wrong"}).status_code == 403
        assert client.get("/?token=wrong").status_code == 403
        assert client.get("/api/snapshot", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/api/snapshot").status_code == 401

        entered = client.get(f"{client.base_url}//evil.example.com?token={TOKEN}&view=1")
        assert entered.headers["location"] == "/evil.example.com?view=1"
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly; Path=/; SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/api/snapshot").status_code == 200
        behind_tls = client.get("/", params={"token": TOKEN}, headers={"x-forwarded-proto": "https"})
        assert "Secure" in behind_tls.headers["set-cookie"]
        assert "Secure" not in cookie
        client.cookies.clear()
        assert client.post("/login", data={"token": TOKEN}).status_code == 303
        assert client.get("/").status_code == 200
        assert process.poll() is None


@pytest.mark.parametrize("words", [("--host", "0.0.0.0"), ("--actions",)])
def test_without_a_token_it_neither_listens_elsewhere_nor_acts(words: tuple[str, ...]) -> None:
    environment = our_environment(REDIS_URL="unix:///nowhere.sock", AMN_DASHBOARD_TOKEN="short")
    command = our_python("ops.cli", "dashboard", *words)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "AMN_DASHBOARD_TOKEN" in done.stderr


def bury(rig: Rig, *reasons: str) -> None:
    rig.put(*(f"r{number}" for number in range(len(reasons))))
    for entry, reason in zip(rig.queue("w", batch_max=64).lease(), reasons, strict=True):
        rig.queue("w").finish([answer(entry, "dead", reason=reason, message="m", counters="")])


def test_actions_want_the_page_s_own_request_and_the_count_that_was_confirmed(real_rig: Rig) -> None:
    rig = real_rig
    bury(rig, *["poison"] * 3, *["undecodable"] * 4)
    with dashboard(rig.url, "--actions", token=TOKEN) as (client, process):
        purge, body = "/api/actions/purge", {"reason": "poison", "count_shown": 3}
        assert client.post(purge, json=body, headers={"x-amn-page": "1"}).status_code == 401
        for strange in (
            {"x-amn-page": "0"},
            {"origin": "https://evil.example.com"},
            {"sec-fetch-site": "cross-site"},
            {"content-type": "text/plain"},
        ):
            assert client.post(purge, json=body, headers={**ACTS, **strange}).status_code == 403, strange
        client.headers.update(ACTS)
        told = client.get(purge, params={"reason": "poison"}).json()
        assert told == {
            "count": 3,
            "sentence": "3 dead letters with the reason poison: they are deleted for good.",
        }
        changed = client.post(purge, json={**body, "count_shown": 30})
        assert (changed.status_code, changed.json()["count"]) == (409, 3)
        assert client.get(purge, params={"older_than_s": "3600"}).json()["count"] == 0
        for bad in (
            *([], {"reason": 7}, {"count_shown": "many"}, {"reason": "x" * 300}),
            *({**body, "x\npage_action action=purge who=10.0.0.9": 1}, {"count_shown": 10**400}),
        ):
            assert client.post(purge, json=bad).status_code == 400, bad
        assert rig.admin.xlen(KEYS.dead) == 7
        assert client.post(purge, json=body).json() == {"sentence": "3 dead letters deleted for good"}
        assert rig.admin.xlen(KEYS.dead) == 4

        letter = client.get("/api/snapshot").json()["dead"]["newest"][0]
        peeked = client.get(f"/api/letters/{letter['id']}").json()
        assert (peeked["reason"], peeked["request"]["context"]) == ("undecodable", "float32 (5, 768)")
        for none in ("1-1", "99999999999999999999-1", "x", "1-1-1", "\u0661-1"):
            assert client.get(f"/api/letters/{none}").status_code == 404, none
        again = client.post("/api/actions/replay", json={"reason": "undecodable", "count_shown": 4})
        assert again.json()["sentence"].startswith("4 dead letters put back, 0 of them ended")
        assert (rig.admin.xlen(KEYS.dead), rig.admin.xlen(KEYS.requests)) == (0, 4)
        process.terminate()
        log = process.stderr.read() if process.stderr else ""
        assert len(re.findall("page_action", log)) == 2
        assert re.search("action=purge.* of_reason=poison", log)
        assert TOKEN not in log


def test_an_action_that_broke_off_halfway_is_in_the_log(
    real_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def purge(letters: DeadLetters, ids: list[str]) -> int:
        real_rig.admin.xdel(KEYS.dead, ids[0])
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(DeadLetters, "purge", purge)
    bury(real_rig, "poison", "poison")
    actions = Actions(real_rig.admin, ProducerSettings(url=real_rig.url))
    with capture_logs() as logs, pytest.raises(ServerError):
        actions.do("purge", {"reason": "poison", "count_shown": 2}, "10.0.0.9\n" + "x" * 100)
    [said] = logs
    assert (said["event"], said["action"], said["of_reason"]) == ("page_action_failed", "purge", "poison")
    assert "gone" in said["error"]
    assert said["who"].startswith("10.0.0.9\\n")
    assert len(said["who"]) == 64


def test_an_alert_is_silenced_and_told_again_from_the_page(real_rig: Rig) -> None:
    admin = real_rig.admin
    admin.set(leader_key(KEYS), "1")
    firing = Finding(
        rule="level", severity="page", state="firing", model="v1", summary="it fell", evaluations=1
    )
    apply(admin, KEYS, [firing], now_ms=int(admin.time()[0]) * 1000, fence=1, settings=AlertSettings())
    with dashboard(real_rig.url, "--actions", token=TOKEN) as (client, _):
        client.headers.update(ACTS)
        snapshot = client.get("/api/snapshot").json()
        [alert] = snapshot["alerts"]
        assert (alert["rule"], alert["state"], alert["summary"]) == ("level", "firing", "it fell")
        assert "it fell" in " ".join(one["sentence"] for one in snapshot["findings"])
        client.headers["x-forwarded-for"] = "the chief"  # nobody asked to believe it
        silence = "/api/actions/silence"
        for bad in ({"for_s": 60, "alert": alert["id"]}, {"reason": "x", "for_s": 60, "alert": "no"}):
            assert client.post(silence, json=bad).status_code == 400, bad
        done = client.post(silence, json={"alert": alert["id"], "for_s": 3600, "reason": "known"})
        assert done.json()["sentence"].startswith("level is silenced for 1 h")
        time.sleep(1.1)
        [row] = client.get("/api/snapshot").json()["silences"]
        assert (row["reason"], row["author"]) == ("known", "page, from 127.0.0.1")
        assert client.post("/api/actions/end_silence", json={"id": row["id"]}).status_code == 200
        assert client.post("/api/actions/end_silence", json={"id": row["id"]}).status_code == 400


@contextmanager
def shown(feed: Feed) -> Iterator[tuple[str, int]]:
    """The page of a feed within this process, and its address."""
    asgi = Doorkeeper(page(feed, None, None))  # type: ignore[arg-type]
    with served(asgi, connections_max=CONNECTIONS_MAX) as port:
        yield "127.0.0.1", port


def test_a_viewer_who_takes_nothing_is_dropped_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SEND_S_MAX", 0.5)
    feed = Feed(lambda: b"x" * 2**20)
    with shown(feed) as address, socket.create_connection(address) as stalled:
        stalled.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with httpx.stream("GET", f"http://127.0.0.1:{address[1]}/api/events", trust_env=False) as events:
            seen, began_s = 0, time.monotonic()
            for part in events.iter_raw():
                seen += len(part)
                if seen > 6 * 2**20:  # six snapshots, a second apart
                    assert feed.viewers == 1
                    break
            assert seen > 6 * 2**20
            assert time.monotonic() - began_s < 20


def test_a_viewer_who_takes_nothing_is_dropped_without_a_traceback_also_with_a_later_asgi(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "SEND_S_MAX", 0.05)
    feed = Feed(lambda: b"x")
    asgi, began = page(feed, None, None), []  # type: ignore[arg-type]

    async def send(message: Any) -> None:
        began.append(message["type"])
        if len(began) > 1:
            await asyncio.sleep(60)

    async def ask() -> None:
        headers = [(b"host", b"localhost")]
        about = {"type": "http", "method": "GET", "path": "/api/events", "query_string": b"", "root_path": ""}
        scope = {**about, "headers": headers, "asgi": {"version": "3.0", "spec_version": "2.4"}}
        await asgi(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert began[0] == "http.response.start"
    assert feed.viewers == 0


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.1\r\nX: ", b"POST /login HTTP/1.1\r\nHost: localhost\r\n"]
)
def test_connections_that_ask_for_nothing_shut_nobody_out(begun: bytes) -> None:
    with shown(Feed(lambda: b"{}")) as address, ExitStack() as opened:
        for _ in range(CONNECTIONS_MAX + 50):
            opened.enter_context(socket.create_connection(address)).sendall(begun)
        for path in ("healthz", "api/snapshot"):
            found = httpx.get(f"http://127.0.0.1:{address[1]}/{path}", trust_env=False, timeout=20)
            assert found.status_code == 200, path


@pytest.mark.parametrize("step", [b"", b"X: 1\r\n"])
def test_a_request_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch, step: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_S_MAX", 0.5)
    with shown(Feed(lambda: b"{}")) as address, socket.create_connection(address) as slow:
        slow.settimeout(0.1)
        began_s, ended = time.monotonic(), False
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        while not ended and time.monotonic() < began_s + 10:
            with suppress(TimeoutError):
                try:
                    slow.sendall(step)
                    ended = not slow.recv(1)
                except ConnectionError:
                    ended = True
        assert ended


def test_who_leaves_within_a_request_is_no_fault_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(Feed(lambda: b"{}")) as address:
        with socket.create_connection(address) as leaving:
            leaving.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\ntok")
            time.sleep(0.3)
        time.sleep(0.3)
    said = capsys.readouterr()
    assert "page_failed" not in said.out + said.err
