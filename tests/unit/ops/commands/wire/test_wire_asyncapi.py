"""docs/asyncapi.json is what the command prints, a valid AsyncAPI 3 document, and true of the fixtures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from golden.kit import FIXTURES, payload

from ops.app import run

ROOT = Path(__file__).parents[5]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs" / "asyncapi.json").read_text("utf-8"))
#: The schema by those who wrote the specification; `make node` brings it.
SCHEMA = ROOT / "examples/node/node_modules/@asyncapi/specs/schemas/3.0.0.json"
#: What is refused for other reasons than a field's type or range.
ELSEWHERE = {"bad_norm", "bad_infinite", "bad_lane", "bad_encoder", "bad_size", "bad_length"}


def test_the_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["wire", "asyncapi"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "asyncapi.json").read_text("utf-8")


@pytest.mark.needs("node")
def test_it_is_a_document_of_asyncapi_3() -> None:
    check = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text("utf-8")))
    check.validate(DOCUMENT)
    request = DOCUMENT["components"]["messages"]["request"]
    broken = DOCUMENT["components"] | {"messages": {"request": request | {"payload": "text"}}}
    assert not check.is_valid(DOCUMENT | {"components": broken})
    assert not check.is_valid({name: value for name, value in DOCUMENT.items() if name != "info"})


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from references(one)


def test_each_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 10
    for reference in found:
        place: Any = DOCUMENT
        for word in reference.removeprefix("#/").split("/"):
            place = place[word]


def as_json(value: Any) -> Any:
    """A message with a text in the place of each array."""
    if isinstance(value, dict):
        return {name: as_json(one) for name, one in value.items()}
    return "bytes" if isinstance(value, bytes) else value


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["name"])
def test_a_fixture_has_the_fields_that_the_schema_of_its_message_says(fixture: dict[str, Any]) -> None:
    kind = fixture["kind"].removeprefix("batch ").removeprefix("refused ")
    check = jsonschema.Draft7Validator(
        {"$ref": f"#/components/schemas/{kind}", "components": DOCUMENT["components"]}
    )
    try:
        message = as_json(msgpack.unpackb(payload(fixture), strict_map_key=False))
    except (ValueError, msgpack.UnpackException):
        assert "refused" in fixture
        return
    named = fixture["name"]
    elsewhere = named in ELSEWHERE or named.startswith(("bad_windows", "bad_twice", "bad_batch_length"))
    if "refused" not in fixture or (elsewhere and named != "bad_windows_ends_no_bytes"):
        check.validate(message)
    else:
        assert not check.is_valid(message)
