"""docs/wire-fixtures.json is read field by field, and written again to the same bytes."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from golden import make_wire
from golden.kit import FILE, FIXTURES, KIT, array, payload

from producer.errors import QueueError
from producer.messages import BatchReply, Failure, Reply, Request
from producer.protocol import wire
from producer.protocol.tables import tables
from producer.sampling import sample_hash, sampled

DOCUMENT = (FILE.parent / "wire.md").read_text("utf-8")
DEFAULTS = {
    "request": {
        "lane": "general",
        "tokens": 0,
        "submitted_at_ms": 0,
        "expires_at_ms": 0,
        "sequence": "",
        "position": -1,
        "domain": "",
        "escalate": False,
        "provisional": False,
        "traceparent": "",
        "priority": "normal",
    },
    "answered": dict.fromkeys(
        ("shed", "degraded", "model", "bank", "policy", "confidence_method", "margin_method", "traceparent"),
        "",
    )
    | {"gain": 0.0, "tiers": {}}
    | {"timings": {"queue_ms": 0, "batch_ms": 0, "compute_ms": 0, "batch_size": 0}},
    "failed": {"retryable": False, "traceparent": ""},
}
KINDS = {"request": Request, "answered": Reply, "failed": Failure}
#: Fields of the map that are not attributes of the value.
FRAME = {"version", "dtype", "shape", "status"}
#: A name that a fixture carries as a field that nobody knows. So the level of a request is `level`.
UNKNOWN = {"priority", "unheard_of"}


def named_fixtures(kind: str) -> list[dict]:
    return [fixture for fixture in FIXTURES if fixture["kind"] == kind]


def named(kind: str) -> list:
    return [pytest.param(fixture, id=fixture["name"]) for fixture in named_fixtures(kind)]


def read(fixture):
    data = payload(fixture)
    if fixture["kind"].endswith("request"):
        return wire.decode_request(data, batches="batch" in fixture["kind"])
    return wire.decode_reply(data)


def written(message) -> bytes:
    encoders = {Request: wire.encode_request, Failure: wire.encode_failure}
    return encoders.get(type(message), wire.encode_reply)(message)


def assert_is(got: np.ndarray, described: dict) -> None:
    want = array(described)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_the_command_makes_the_file_as_it_is():
    made = make_wire.document() | {"sampling": KIT["sampling"]}
    assert make_wire.text(made) == FILE.read_text("utf-8")
    assert FILE.stat().st_size < 200_000


def test_the_bytes_are_those_that_were_written_and_no_name_comes_twice():
    for fixture in FIXTURES:
        assert hashlib.sha256(payload(fixture)).hexdigest() == fixture["sha256"], fixture["name"]
    assert len({fixture["name"] for fixture in FIXTURES}) == len(FIXTURES)


def test_there_is_a_fixture_for_each_kind_each_field_and_each_code_on_the_wire():
    kinds = {fixture["kind"].replace("batch request", "request") for fixture in FIXTURES}
    messages = tables()["messages"]
    assert kinds == messages.keys() - {"timings"} | {"refused request"}
    for kind in kinds - {"refused request"}:
        shown = set().union(*(f["fields"] for f in FIXTURES if "fields" in f and f["kind"].endswith(kind)))
        assert shown >= {row["name"] for row in messages[kind]}, kind
    codes = {f["fields"]["code"] for f in named_fixtures("failed")}
    codes |= {f["refused"]["code"] for f in named_fixtures("refused request")}
    table = re.findall(r"^\| ([^|]*) \| yes \|", DOCUMENT, re.MULTILINE)
    assert codes >= {code for cell in table for code in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("fixture", named("request") + named("answered") + named("failed"))
def test_every_field_is_read_as_described(fixture):
    message = read(fixture)
    assert type(message) is KINDS[fixture["kind"]]
    known = {name: value for name, value in fixture["fields"].items() if name not in UNKNOWN}
    expected = DEFAULTS[fixture["kind"]] | known
    if "level" in expected:
        expected["priority"] = expected.pop("level")
    assert set(expected) - FRAME == set(type(message).__slots__)
    for name in set(expected) - FRAME:
        got, want = getattr(message, name), expected[name]
        if name in ("context", "vector"):
            assert_is(got, want)
        elif name == "timings":
            assert {key: getattr(got, key) for key in want} == want
        elif name == "tiers":
            assert {model: list(pair) for model, pair in got.items()} == want
        elif name == "reasons":
            assert got == tuple(want)
        else:
            assert got == want, name


@pytest.mark.parametrize("fixture", [pytest.param(f, id=f["name"]) for f in FIXTURES if f.get("reencodes")])
def test_what_is_read_is_written_to_the_same_bytes(fixture):
    assert written(read(fixture)) == payload(fixture)


@pytest.mark.parametrize("fixture", named("batch request"))
def test_a_batch_is_read_as_described(fixture):
    request, fields = read(fixture), fixture["fields"]
    assert request.batched
    rows = array(fields["context"])
    if "ends" in fields:
        rows = np.stack([rows[end - 4 : end + 1] for end in array(fields["ends"])])
    assert list(request.context.shape) == fields["shape"]
    assert request.context.dtype == rows.dtype
    np.testing.assert_array_equal(request.context, rows)
    for name, default in DEFAULTS["request"].items():
        assert getattr(request, name) == fields.get(name, default), name
    assert (request.id, request.reply_to) == (fields["id"], fields["reply_to"])
    with pytest.raises(QueueError, match=r"shape|limit"):
        wire.decode_request(payload(fixture))


@pytest.mark.parametrize("fixture", named("answered_batch"))
def test_the_answer_to_a_batch_is_read_as_described(fixture):
    reply, fields = read(fixture), fixture["fields"]
    assert type(reply) is BatchReply
    for name in ("vectors", "confidences", "margins", "fired", "shed"):
        assert_is(getattr(reply, name), fields[name])
    assert_is(reply.gains, fields.get("gains", {"dtype": "f4", "values": [0, 0]}))
    for name in ("rules", "sheds"):
        assert getattr(reply, name) == tuple(fields[name])
    assert reply.tiers.keys() == fields.get("tiers", {}).keys()
    for model, pairs in reply.tiers.items():
        assert_is(pairs.ravel(), fields["tiers"][model])
    for name in ("id", "served_by", "provisional"):
        assert getattr(reply, name) == fields[name]
    for name in ("degraded", "model", "bank", "policy", "confidence_method", "margin_method"):
        assert getattr(reply, name) == fields.get(name, "")
    timings = DEFAULTS["answered"]["timings"] | fields.get("timings", {})
    assert {name: getattr(reply.timings, name) for name in timings} == timings


@pytest.mark.parametrize("row", KIT["sampling"], ids=lambda row: row["key"])
def test_the_sampling_hash_is_the_documented_one(row):
    assert sample_hash(row["key"], row["salt"]) == int(row["hash"])
    assert sampled(row["key"], 0.01, row["salt"]) == row["sampled_at_1_percent"]
    assert sampled(row["key"], 0.05, row["salt"]) == row["sampled_at_5_percent"]
