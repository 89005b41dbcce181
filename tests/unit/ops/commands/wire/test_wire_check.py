"""`amn wire check` says of a saved message what a worker would, and names each field that is wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from golden.kit import FIXTURES, payload
from property.fuzz import FULL_BATCH, FULL_REQUEST, FULL_WINDOWS, damaged

from ops.app import run
from ops.commands.wire.check import check
from producer.errors import Undecodable, UnsupportedVersion
from producer.messages import Failure
from producer.protocol import wire
from producer.protocol.tables import tables
from producer.transport.library import scripts
from workers.engine.entry import Entry
from workers.engine.microbatch import assemble
from workers.settings import WorkerSettings

SETTINGS = WorkerSettings(kind="amn")
UNIT = np.eye(5, 768, dtype="<f4").tobytes()
GOOD: dict[str, Any] = {
    "version": 1,
    "id": "r",
    "reply_to": "me",
    "dtype": "f4",
    "shape": [5, 768],
    "context": UNIT,
    "encoder": "all-mpnet-base-v2/mean/l2",
}
ROWS = {row["name"]: row for row in tables()["messages"]["request"]}


def worker_says(payload: bytes) -> tuple[str, str] | None:
    batch = assemble([Entry(b"1-0", {b"request": payload, b"id": b"r"})], SETTINGS, 0.0, 0.0)
    for outcome in batch.refused:
        if outcome.op == "dead":
            return outcome.reason, outcome.message
        failure = wire.decode_reply(outcome.payload)
        assert isinstance(failure, Failure)
        return failure.code, failure.message
    return None


def problems(payload: bytes) -> dict[str, str]:
    return {one.name: one.problem for one in check(payload, SETTINGS).fields if one.problem}


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["name"])
def test_of_every_fixture_it_says_what_a_worker_says(fixture: dict[str, Any]) -> None:
    data = payload(fixture)
    failure = check(data, SETTINGS).failure
    assert (failure and (failure.code, failure.message)) == worker_says(data)
    if refused := fixture.get("refused"):
        assert failure is not None
        assert failure.code == refused["code"]
        named = f"field {refused['field']!r}" if failure.code == "undecodable" else refused["field"]
        assert named in failure.message or not refused["field"]
    elif fixture["kind"].endswith("request") and fixture["name"] != "request_most":
        assert failure is None  # that one has a lane and an encoder of its own


def test_all_mistakes_of_a_message_are_named_at_once_and_none_hides_another() -> None:
    bad = {
        "tokens": 1.5,
        "lane": "gossip",
        "id": "a b",
        "context": [0.5] * 3840,
        "sequence": None,
        "level": 1,
    }
    found = problems(msgpack.packb(GOOD | bad))
    assert found.keys() == bad.keys()
    assert found["tokens"] == "undecodable: field 'tokens' is of type float, expected integer"
    assert found["lane"].startswith("unknown_lane: ")
    assert "send arrays as bin" in found["context"]


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"context": UNIT[:-4]}, "context", "undecodable"),
        ({"context": bytes(15360)}, "context", "bad_norm"),
        ({"shape": [2, 5, 768], "context": UNIT + bytes(15360)}, "context", "bad_norm"),
        ({"dtype": "f8"}, "dtype", "undecodable"),
        ({"shape": [768, 5]}, "shape", "undecodable"),
        ({"encoder": "another"}, "encoder", "unknown_encoder"),
        ({"version": 2}, "version", "unsupported_version"),
        ({"shape": [2, 5, 768], "context": UNIT, "ends": b"\4\0"}, "ends", "undecodable"),
        ({"reply_to": "a:b"}, "reply_to", "undecodable"),
    ],
    ids=str,
)
def test_the_field_that_is_wrong_is_the_one_that_is_named(changes: Any, field: str, code: str) -> None:
    [(name, problem)] = problems(msgpack.packb(GOOD | changes)).items()
    assert (name, problem.split(":")[0]) == (field, code)


def test_a_field_that_is_left_out_or_not_known_is_shown_as_such() -> None:
    del (message := GOOD | {"deadline_ms": 5})["encoder"]
    found = {one.name: one for one in check(msgpack.packb(message), SETTINGS).fields}
    assert found["encoder"].problem == "field 'encoder' is missing"
    assert (found["deadline_ms"].problem, found["deadline_ms"].note) == ("", "not known, ignored")
    assert found["lane"].note == "left out: 'general'"


def test_a_message_that_a_worker_takes_has_no_problem_in_any_field_however_it_was_damaged() -> None:
    source, taken = random.Random(5), 0
    sound = [msgpack.packb(one | {"context": UNIT * n}) for one, n in ((FULL_REQUEST, 1), (FULL_BATCH, 2))]
    sound.append(msgpack.packb(FULL_WINDOWS | {"context": UNIT + UNIT[: 4 * 768]}))
    for turn in range(600):
        payload = damaged(source, sound[turn % 3]) if turn > 2 else sound[turn]
        found = check(payload, SETTINGS)
        if found.failure is None:
            taken += 1
            assert not [one for one in found.fields if one.problem]
        elif found.failure.message.startswith("field "):
            assert [one for one in found.fields if one.problem], found.failure
    assert taken > 20


def beyond(row: dict[str, Any]) -> list[tuple[Any, bool]]:
    """Values at the ends of a field's range, and beyond: each with whether it is taken."""
    found: list[tuple[Any, bool]] = []
    if "length_maximum" in row:
        found += [("x" * row["length_maximum"], True), ("x" * (row["length_maximum"] + 1), False)]
    if "pattern" in row:
        found += [("x" * 64, True), ("a.b-c_D9", True), ("x" * 65, False), ("", False), ("a b", False)]
        found.append(("a:b", ":" in row["pattern"]))
    if "below" in row:
        found += [(row["minimum"], True), (row["minimum"] - 1, False), (row["below"], False)]
        found += [(row["below"] - 1, True), (float("nan"), False)]
    if row["type"] == "integer" and "value" not in row:
        found += [(2**64 - 1, True), (-(2**63), True), (1.0, False), (True, False)]
    if row["type"] == "boolean":
        found += [(True, True), (1, False)]
    return [*found, (None, False)]


@pytest.mark.parametrize("name", ROWS)
def test_the_ranges_of_the_table_are_those_that_a_message_is_decoded_by(name: str) -> None:
    for value, taken in beyond(ROWS[name]):
        if name == "ends" and value is None:
            continue  # read as left out, by every version so far
        payload = msgpack.packb(GOOD | {name: value})
        if taken:
            assert wire.decode_request(payload, batches=True).id
        else:
            with pytest.raises((Undecodable, UnsupportedVersion), match=name):
                wire.decode_request(payload, batches=True)


def test_the_command_says_it_and_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good").write_bytes(msgpack.packb(GOOD))
    (tmp_path / "bad").write_bytes(msgpack.packb(GOOD | {"tokens": 1.5}))
    (tmp_path / "nobody").write_bytes(msgpack.packb(GOOD | {"reply_to": "a:b"}))
    (tmp_path / "noise").write_bytes(b"\xc1 no message")
    assert run(["wire", "check", str(tmp_path / "good")]) == 0
    capsys.readouterr()
    assert run(["wire", "check", str(tmp_path / "bad"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["refused"]["code"] == "undecodable"
    assert "field 'tokens' is of type float, expected integer; its client is told" in err
    assert run(["wire", "check", str(tmp_path / "nobody")]) == 1
    assert "nobody is told" in capsys.readouterr().err
    assert run(["wire", "check", str(tmp_path / "noise")]) == 1


def test_the_table_is_one_object_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["wire", "fields"]) == 0
    assert json.loads(capsys.readouterr().out) == tables() | {"scripts": scripts()}
