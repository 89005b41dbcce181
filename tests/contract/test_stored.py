"""A server that an earlier version has used is taken over: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import msgpack
import pytest
from golden.kit import FIXTURES, payload
from rig import KEYS, Rig, answer

from producer import Options
from producer.messages import Failure
from producer.protocol import wire
from producer.session.channel import Channel
from producer.session.requests import prepare
from producer.settings import ProducerSettings
from producer.transport.connection import script_text
from workers.engine.entry import Entry
from workers.engine.microbatch import assemble
from workers.engine.outcomes import fast_answer

GOLDEN = Path(__file__).parents[1] / "golden"
SHA256 = {
    "1": "62ce397ac3c69d6c7c710e6499ba1bfaf81940d131b4f80cee26fbdeedf88158",
    "2": "33d18232b02541d816758c6eb8b872b0b52fff857c6b190de6b1bc2bb40e0298",
}


def stored(name: str) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((GOLDEN / "stored" / f"{name}.json").read_text("utf-8"))
    return text


def load(client: Any, keys: dict[str, Any]) -> str:
    """Puts it onto a server; returns the client id of whoever sent the requests."""
    runpy.run_path(str(GOLDEN / "make_stored.py"))["load"](client, keys)
    return str(client.get(KEYS.seen("waits")).decode().split(" ")[0])


def names(entries: list[Entry]) -> set[str]:
    return {wire.decode_request(entry.fields[b"request"]).id for entry in entries}


@pytest.mark.parametrize("name", SHA256)
def test_no_stored_fixture_was_edited(name: str) -> None:
    data = (GOLDEN / "stored" / f"{name}.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256[name]


@pytest.mark.parametrize("name", SHA256)
def test_what_an_earlier_version_left_is_answered(rig: Rig, name: str) -> None:
    client = load(rig.admin, stored(name))
    queue, fallback = rig.queue("w"), rig.queue("f", KEYS.fallback)
    reclaimed, fresh = queue.lease(), queue.lease()
    assert (names(reclaimed), names(fresh)) == ({"leased"}, {"waits", "waits-too"})
    assert [entry.deliveries for entry in reclaimed] == [2]
    escalated = fallback.lease()
    assert names(escalated) == {"escalated", "provisional"}
    assert all(fast_answer(entry) for entry in escalated)
    for of, entries in ((queue, reclaimed + fresh), (fallback, escalated)):
        batch = assemble(entries, of.settings, 0.0, 0.0)
        assert (len(batch), batch.refused) == (len(entries), [])
        assert set(of.finish([answer(entry) for entry in entries])) == {b"ok"}
    replies = [wire.decode_reply(f[b"reply"]) for _, f in rig.admin.xrange(KEYS.replies(client))]
    assert {reply.id for reply in replies} == {"leased", "waits", "waits-too", "escalated", "provisional"}
    assert not any(isinstance(reply, Failure) for reply in replies)
    assert rig.bytes_left() == [0] * 5


@pytest.mark.parametrize("name", SHA256)
def test_what_an_earlier_version_left_is_escalated_once_more(rig: Rig, name: str) -> None:
    load(rig.admin, stored(name))
    for stream in (KEYS.requests, KEYS.requests, KEYS.fallback):  # the expired lease comes first
        queue = rig.queue("w", stream)
        entries = queue.lease()
        assert queue.finish([answer(entry, "escalate") for entry in entries]) == [b"ok"] * len(entries)
    last = rig.queue("s", KEYS.secondary).lease()
    assert names(last) == {"leased", "waits", "waits-too", "escalated", "provisional"}


@pytest.mark.parametrize("name", SHA256)
def test_its_ids_are_known_and_its_requests_can_be_taken_back(rig: Rig, context: Any, name: str) -> None:
    client = load(rig.admin, stored(name))
    session = Channel(ProducerSettings(url=rig.url))
    session.note = client
    submit = rig.admin.register_script(script_text("producer", "submit"))
    cancel = rig.admin.register_script(script_text("producer", "cancel"))

    def send(request_id: str, who: str) -> int:
        session.note = who
        outgoing = prepare(context, Options(request_id=request_id), who, session.settings)
        keys, arguments = session.submit_call([outgoing])
        return int(submit(keys=keys, args=arguments)[0])

    def take_back(request_id: str) -> int:
        session.note = client
        keys, arguments = session.cancel_call(request_id)
        return int(cancel(keys=keys, args=arguments))

    assert (send("waits", client), send("waits", "other")) == (1, 0)
    assert [take_back(n) for n in ("waits", "waits", "leased", "cancelled")] == [1, 1, 0, 1]
    # Version 1 did not note where an escalated request went: that one is answered all the same.
    assert take_back("escalated") == int(name != "1")
    assert send("cancelled", client) == 1
    ids = [f.get(b"id") for _, f in rig.admin.xrange(KEYS.requests)]
    assert (len(ids), ids[-1]) == (3, b"cancelled")


def test_the_present_version_still_writes_what_the_latest_fixture_holds(rig: Rig, contexts: Any) -> None:
    """Who changes what is stored writes a new fixture first."""
    latest = stored(max(SHA256))
    session = Channel(ProducerSettings(url=rig.url))
    outgoing = prepare(contexts(1)[0], Options(request_id="a"), session.client_id, session.settings)
    keys, arguments = session.submit_call([outgoing])
    rig.admin.register_script(script_text("producer", "submit"))(keys=keys, args=arguments)
    queue = rig.queue("w")
    ((_, fields),) = rig.admin.xrange(KEYS.requests)
    assert set(fields) == {name.encode() for name in latest[KEYS.requests]["stream"][0][1]}
    queue.finish([answer(entry, "escalate") for entry in queue.lease()])
    ((_, fields),) = rig.admin.xrange(KEYS.fallback)
    assert set(fields) == {name.encode() for name in latest[KEYS.fallback]["stream"][0][1]}
    assert rig.admin.get(KEYS.seen("a")).decode().count(" ") == 3


def test_a_newer_wire_version_is_refused_by_name_and_its_batch_is_answered(rig: Rig) -> None:
    rig.put("before")
    newer = payload(next(one for one in FIXTURES if one["name"] == "bad_version_2"))
    rig.put_bytes(newer)
    rig.put("after")
    queue = rig.queue("w")
    entries = queue.lease()
    batch = assemble(entries, queue.settings, 0.0, 0.0)
    outcomes = [*batch.refused, *map(answer, batch.entries)]
    assert queue.finish(outcomes) == [b"ok"] * 3
    assert [reply.id for reply in rig.replies()] == ["before", "after"]
    message = msgpack.unpackb(newer)
    ((_, fields),) = rig.admin.xrange(KEYS.replies(message["reply_to"]))
    told = wire.decode_reply(fields[b"reply"])
    assert (told.id, told.code) == (message["id"], "unsupported_version")
