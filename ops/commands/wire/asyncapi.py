"""The wire as an AsyncAPI 3 document, made of the table by which messages are decoded."""

from __future__ import annotations

from typing import Any

from producer.keys import Keys
from producer.messages import DIMENSIONS
from producer.protocol.tables import tables
from producer.transport.library import VERSION, scripts

_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "bin": {"type": "string", "format": "binary"},
    "integer": {"type": "integer"},
    "float": {"type": "number"},
    "boolean": {"type": "boolean"},
    "list": {"type": "array"},
    "map": {"type": "object"},
}
#: What the table calls a range, and JSON Schema.
_RANGES = {"minimum": "minimum", "below": "exclusiveMaximum", "length_maximum": "maxLength", "value": "const"}
#: The keys of a queue of this name are addresses with a parameter, as they stand.
_KEYS = Keys("queue")
#: Streams: their addresses and messages.
_CHANNELS = {
    "requests": (_KEYS.requests + "{level}", ("request",)),
    "replies": (_KEYS.replies("{client}"), ("answered", "answered_batch", "failed")),
    "truths": (_KEYS.truths, ("truth",)),
}
_PARAMETERS = {
    "queue": {
        "default": "{main}",
        "description": "Name of the queue in braces, which are a part of the key: its hash tag in a cluster.",
    },
    "client": {"description": "The client id: `reply_to` of the request."},
    "level": {"enum": [":high", "", ":low"], "description": "Empty for the level normal."},
}
#: The fields of an entry, which is no map; rows as in the table.
_TRUTH = [
    {"name": "kind", "type": "text", "required": True, "value": "truth"},
    {"name": "key", "type": "text", "required": True},
    {"name": "vector", "type": "bin", "required": True, "length_bytes": 4 * DIMENSIONS},
]


def document() -> dict[str, Any]:
    """The document, JSON as it is."""
    schemas = {kind: _schema(rows) for kind, rows in tables()["messages"].items()}
    for kind in ("answered", "answered_batch"):
        schemas[kind]["properties"]["timings"] = {"$ref": "#/components/schemas/timings"}
    schemas["truth"] = _schema(_TRUTH)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "amn-queue",
            "version": f"{VERSION}.0.0",
            "description": "Requests to the AMN queue, and their answers: msgpack maps in streams of Redis. "
            "Made by `amn wire asyncapi`; docs/wire.md says what each field means.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/msgpack",
        "servers": {"local": {"host": "127.0.0.1:6379", "protocol": "redis"}},
        "channels": {name: _channel(*about) for name, about in _CHANNELS.items()},
        "operations": _operations(),
        "components": {
            "schemas": schemas,
            "messages": {kind: _message(kind) for kind in schemas if kind != "timings"},
        },
    }


def _schema(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [row["name"] for row in rows if row["required"]],
        "properties": {row["name"]: _property(row) for row in rows},
    }


def _property(row: dict[str, Any]) -> dict[str, Any]:
    found = _TYPES[row["type"]] | {to: row[name] for name, to in _RANGES.items() if name in row}
    if "pattern" in row:
        found["pattern"] = f"^{row['pattern']}$"
    if "values" in row:
        lists = row["type"] == "list"
        found |= {"oneOf": [_list(one, row) for one in row["values"]]} if lists else {"enum": row["values"]}
    elif "default" in row and row["type"] != "bin":
        found["default"] = row["default"]
    return found


def _list(one: list[Any], row: dict[str, Any]) -> dict[str, Any]:
    """A list of these numbers; `n` is one up to a largest."""
    free = {"type": "integer", "minimum": 1, "maximum": row["n_maximum"]}
    items = [free if item == "n" else {"const": item} for item in one]
    return {"items": items, "minItems": len(items), "maxItems": len(items)}


def _channel(address: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    return {
        "address": address,
        "parameters": {name: one for name, one in _PARAMETERS.items() if f"{{{name}}}" in address},
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in kinds},
    }


def _message(kind: str) -> dict[str, Any]:
    found = {"name": kind, "payload": {"$ref": f"#/components/schemas/{kind}"}}
    return found if kind == "truth" else found | {"correlationId": {"location": "$message.payload#/id"}}


def _operations() -> dict[str, Any]:
    channels = {name: {"$ref": f"#/channels/{name}"} for name in _CHANNELS}
    by_script = {"reply": {"channel": channels["replies"]}, "x-scripts": scripts()}
    return {
        "submit": {"action": "send", "channel": channels["requests"], **by_script},
        "readReplies": {"action": "receive", "channel": channels["replies"]},
        "reportTruth": {"action": "send", "channel": channels["truths"]},
    }
