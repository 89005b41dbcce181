"""The wire fixtures of each version are read field by field, and written again to the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from producer import wire
from producer.errors import QueueError
from producer.messages import Failure, Reply, Request
from producer.sampling import sample_hash, sampled

GOLDEN = Path(__file__).parents[1] / "golden"
#: Version 1 as it was first, and with the field that came later.
FOLDERS = ("v1", "v1_level")
FIXTURES = [
    fixture | {"path": GOLDEN / folder / fixture["file"]}
    for folder in FOLDERS
    for fixture in json.loads((GOLDEN / folder / "fixtures.json").read_text("utf-8"))["fixtures"]
]
SAMPLING = json.loads((GOLDEN / "v1" / "sampling.json").read_text("utf-8"))
DEFAULTS = {
    "request": {
        "lane": "general",
        "tokens": 0,
        "submitted_at_ms": 0,
        "expires_at_ms": 0,
        "sequence": "",
        "position": -1,
        "domain": "",
        "provisional": False,
        "traceparent": "",
        "priority": "normal",
    },
    "reply": dict.fromkeys(
        ("shed", "degraded", "model", "bank", "policy", "confidence_method", "margin_method"), ""
    )
    | {"gain": 0.0, "tiers": {}}
    | {"timings": {"queue_ms": 0, "batch_ms": 0, "compute_ms": 0, "batch_size": 0}},
    "failure": {"retryable": False},
}
KINDS = {"request": Request, "reply": Reply, "failure": Failure}
#: Fields of the map that are not attributes of the value.
FRAME = {"version", "dtype", "shape", "status"}
#: A name that a fixture carries as a field that nobody knows. So the level of a request is `level`.
UNKNOWN = {"priority"}


def named(kind: str) -> list:
    return [pytest.param(f, id=f["name"]) for f in FIXTURES if f["kind"] == kind]


def dense(shape: tuple[int, ...], nonzero: list) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    for *place, value in nonzero:
        array[tuple(place)] = value
    return array


def encoded(message) -> bytes:
    encoders = {Request: wire.encode_request, Reply: wire.encode_reply, Failure: wire.encode_failure}
    return encoders[type(message)](message)


def test_no_fixture_was_edited():
    for fixture in FIXTURES:
        data = fixture["path"].read_bytes()
        assert hashlib.sha256(data).hexdigest() == fixture["sha256"], fixture["name"]
    there = {path for folder in FOLDERS for path in (GOLDEN / folder).glob("*.msgpack")}
    assert {fixture["path"] for fixture in FIXTURES} == there


@pytest.mark.parametrize("fixture", named("request") + named("reply") + named("failure"))
def test_every_field_is_read_as_described(fixture):
    decode = wire.decode_request if fixture["kind"] == "request" else wire.decode_reply
    message = decode(fixture["path"].read_bytes())
    assert type(message) is KINDS[fixture["kind"]]
    known = {name: value for name, value in fixture["fields"].items() if name not in UNKNOWN}
    expected = DEFAULTS[fixture["kind"]] | known
    if "level" in expected:
        expected["priority"] = expected.pop("level")
    assert set(expected) - FRAME == set(type(message).__slots__)
    for name in set(expected) - FRAME:
        got, want = getattr(message, name), expected[name]
        if name == "context":
            assert got.dtype == np.dtype("<" + fixture["fields"]["dtype"])
            np.testing.assert_array_equal(got, dense((5, 768), want["nonzero"]))
        elif name == "vector":
            assert got.dtype == np.dtype("<f4")
            np.testing.assert_array_equal(got, dense((768,), want["nonzero"]))
        elif name == "timings":
            assert {key: getattr(got, key) for key in want} == want
        elif name == "reasons":
            assert got == tuple(want)
        else:
            assert got == want, name


@pytest.mark.parametrize("fixture", [pytest.param(f, id=f["name"]) for f in FIXTURES if f.get("reencodes")])
def test_what_is_read_is_written_to_the_same_bytes(fixture):
    data = fixture["path"].read_bytes()
    decode = wire.decode_request if fixture["kind"] == "request" else wire.decode_reply
    assert encoded(decode(data)) == data


@pytest.mark.parametrize("fixture", named("invalid request"))
def test_what_breaks_the_format_is_a_typed_error(fixture):
    with pytest.raises(QueueError) as caught:
        wire.decode_request(fixture["path"].read_bytes())
    assert caught.value.code == fixture["error"]


@pytest.mark.parametrize("row", SAMPLING["vectors"], ids=lambda row: row["key"])
def test_the_sampling_hash_is_the_documented_one(row):
    assert sample_hash(row["key"], row["salt"]) == int(row["hash"])
    assert sampled(row["key"], 0.01, row["salt"]) == row["sampled_at_1_percent"]
    assert sampled(row["key"], 0.05, row["salt"]) == row["sampled_at_5_percent"]
