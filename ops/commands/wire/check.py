"""A saved message as a worker sees it: by the worker's own code, whole and field by field."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from producer.errors import Undecodable
from producer.keys import REQUEST
from producer.messages import CONTEXT_SHAPE, Failure
from producer.protocol.maps import pack, parts, shown, value, word
from producer.protocol.peek import sender
from producer.protocol.tables import tables
from producer.protocol.wire import decode_reply
from workers.engine.entry import Entry
from workers.engine.microbatch import assemble
from workers.settings import WorkerSettings

#: Four fields that say one thing: the contexts.
_FORM = ("dtype", "shape", "context", "ends")


class FieldCheck(NamedTuple):
    """One field of a message: its value in short, and what is wrong with it or "" when nothing is."""

    name: str
    type: str
    value: str
    problem: str
    note: str = ""


class Check(NamedTuple):
    """The verdict on a message: the worker's failure or None, whether its client is told, and its fields."""

    failure: Failure | None
    told: bool
    fields: list[FieldCheck]


def check(payload: bytes, settings: WorkerSettings) -> Check:
    """Looks at one request as a worker with these settings does, but not at its deadline, which is over."""
    told = sender(payload, b"beside") is not None  # each entry has its id beside the message too
    return Check(_refused(payload, settings), told, _fields(payload, settings))


def _refused(payload: bytes, settings: WorkerSettings) -> Failure | None:
    with np.errstate(all="ignore"):  # a number near the limit of float32 has an infinite square
        batch = assemble([Entry(b"0-0", {REQUEST: payload})], settings, 0.0, 0.0)
    for outcome in batch.refused:
        if outcome.op != "reply":
            return Failure(id="", code=outcome.reason, message=outcome.message)
        failure = decode_reply(outcome.payload)
        assert isinstance(failure, Failure)
        return failure
    return None


def _fields(payload: bytes, settings: WorkerSettings) -> list[FieldCheck]:
    """The fields in the table's order, then those that it does not know.

    Each is put alone into a message that is sound, so that none hides what is wrong with another.
    """
    found, checks = parts(payload), []
    known = {row["name"]: row for row in tables()["messages"]["request"]}
    form = {name: found[name] for name in _FORM if name in found}
    for name, row in known.items():
        if name not in found:
            note = "" if row["required"] else f"left out: {shown(row['default'])}"
            problem = f"field {name!r} is missing" if row["required"] else ""
            checks.append(FieldCheck(name, "", "", problem, note))
            continue
        together = form if name in _FORM else {name: found[name]}
        checks.append(_field(name, found[name], _alone(together, name, settings)))
    unknown = [name for name in found if name not in known]
    return checks + [_field(name, found[name], "")._replace(note="not known, ignored") for name in unknown]


def _alone(encoded: dict[str, bytes], name: str, settings: WorkerSettings) -> str:
    """The problem that a worker has with these fields, if it is one of `name`."""
    context = np.eye(*CONTEXT_SHAPE, dtype="<f4")
    good = {"version": 1, "id": "r", "reply_to": "c", "dtype": "f4", "shape": list(CONTEXT_SHAPE)}
    message: dict[str, Any] = {**good, "context": context.tobytes(), "encoder": settings.encoder}
    try:
        message |= {one: value(data) for one, data in encoded.items()}
    except Undecodable:
        try:
            value(encoded[name])
        except Undecodable as error:
            return f"{error.code}: field {name!r} {error}"
        return ""
    failure = _refused(pack(message), settings)
    if failure is None:
        return ""
    named = [one for one in encoded if f"{one!r}" in failure.message.split(":")[0]] or [
        "context" if "context" in encoded else name
    ]
    return f"{failure.code}: {failure.message}" if name in named else ""


def _field(name: str, encoded: bytes, problem: str) -> FieldCheck:
    try:
        found = value(encoded)
    except Undecodable:
        return FieldCheck(name, "", f"{len(encoded)} bytes", problem)
    text = f"{len(found)} bytes" if isinstance(found, bytes) else shown(found)
    return FieldCheck(name, word(found), text, problem)
