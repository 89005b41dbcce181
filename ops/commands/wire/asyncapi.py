"""The wire as an AsyncAPI 3 document, made of the table by which messages are decoded."""

from __future__ import annotations

from typing import Any

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
#: Streams of a queue: what one is called here, its key behind the queue's name, its messages and what it is.
_CHANNELS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "requestsHigh": ("requests:high", ("request",), "Requests of the level high."),
    "requests": ("requests", ("request",), "Requests of the level normal."),
    "requestsLow": ("requests:low", ("request",), "Requests of the level low, for which nobody waits."),
    "replies": ("replies:{client}", ("answered", "answered_batch", "failed"), "Answers to one client."),
    "truths": ("truths", ("truth",), "The vectors that really came next."),
}
_PARAMETERS = {
    "queue": {
        "default": "{main}",
        "description": "Name of the queue in braces, which are a part of the key: its hash tag in a cluster.",
    },
    "client": {"description": "The client id, `reply_to` of the request."},
}
_SUMMARIES = {
    "request": "One context of five vectors, or a batch of up to 256.",
    "answered": "The answer to one context, provisional or final.",
    "answered_batch": "The answer to a batch.",
    "failed": "A named failure, which is final.",
    "truth": "A true next vector, as the fields of a stream entry.",
}


def document() -> dict[str, Any]:
    """The document, JSON as it is."""
    messages = tables()["messages"]
    schemas = {kind: _schema(rows) for kind, rows in messages.items()}
    for kind in ("answered", "answered_batch"):
        schemas[kind]["properties"]["timings"] = {"$ref": "#/components/schemas/timings"}
    schemas["truth"] = _truth()
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
        "servers": {
            "local": {"host": "127.0.0.1:6379", "protocol": "redis", "description": "Redis 7, Valkey."}
        },
        "channels": {name: _channel(*about) for name, about in _CHANNELS.items()},
        "operations": _operations(),
        "components": {
            "schemas": schemas,
            "messages": {kind: _message(kind) for kind in _SUMMARIES},
        },
    }


def _schema(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Fields that are not listed are ignored.",
        "required": [row["name"] for row in rows if row["required"]],
        "properties": {row["name"]: _property(row) for row in rows},
    }


def _property(row: dict[str, Any]) -> dict[str, Any]:
    found = _TYPES[row["type"]] | {to: row[name] for name, to in _RANGES.items() if name in row}
    if "pattern" in row:
        found["pattern"] = f"^{row['pattern']}$"
    if row["type"] == "list" and "values" in row:
        return found | {"oneOf": [_list(one, row) for one in row["values"]]}
    if "values" in row:
        found["enum"] = row["values"]
    if "default" in row and row["type"] != "bin":
        found["default"] = row["default"]
    return found


def _list(one: list[Any], row: dict[str, Any]) -> dict[str, Any]:
    """A list of these numbers; `n` is one up to a largest."""
    free = {"type": "integer", "minimum": 1, "maximum": row["n_maximum"]}
    items = [free if item == "n" else {"const": item} for item in one]
    return {"items": items, "minItems": len(items), "maxItems": len(items)}


def _truth() -> dict[str, Any]:
    key = {"type": "string", "description": "`<sequence>#<position>` of the request, or its id."}
    vector = _TYPES["bin"] | {"description": f"{DIMENSIONS * 4} bytes: little-endian float32."}
    properties = {"kind": {"type": "string", "const": "truth"}, "key": key, "vector": vector}
    return {"type": "object", "required": list(properties), "properties": properties}


def _channel(key: str, kinds: tuple[str, ...], text: str) -> dict[str, Any]:
    names = ["queue", *(["client"] if "{client}" in key else [])]
    return {
        "address": f"amn:{{queue}}:{key}",
        "description": text,
        "parameters": {name: _PARAMETERS[name] for name in names},
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in kinds},
    }


def _message(kind: str) -> dict[str, Any]:
    payload = {"$ref": f"#/components/schemas/{kind}"}
    found = {"name": kind, "summary": _SUMMARIES[kind], "payload": payload}
    return found if kind == "truth" else found | {"correlationId": {"location": "$message.payload#/id"}}


def _operations() -> dict[str, Any]:
    submit, cancel = scripts()
    found: dict[str, Any] = {}
    for name in ("requestsHigh", "requests", "requestsLow"):
        found[f"submitTo{name[0].upper()}{name[1:]}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": "By the script, which checks the limits and appends once for each id.",
            "reply": {"channel": {"$ref": "#/channels/replies"}},
            "x-script": submit,
            "x-taken-back-by": cancel,
        }
    found["readReplies"] = {
        "action": "receive",
        "channel": {"$ref": "#/channels/replies"},
        "summary": "XREAD; the message is the field `reply` of an entry.",
    }
    found["reportTruth"] = {"action": "send", "channel": {"$ref": "#/channels/truths"}, "summary": "XADD."}
    return found
