"""The parameters of a request beside its contexts: the options of a producer, under the same names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ops.gateway.errors import bad
from ops.gateway.settings import DEADLINE_MS, DEADLINE_MS_MAX
from producer.messages import PRIORITIES
from producer.options import Options

#: The options that are parameters; over HTTP, a provisional answer is of no use.
_OPTIONS = [one.name for one in dataclasses.fields(Options)]
NAMES = tuple(name for name in _OPTIONS if name not in ("provisional", "traceparent"))
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def options(parameters: Mapping[str, Any], traceparent: str) -> Options:
    """The options of a request.

    Args:
        parameters: As JSON gives them. Clients of Triton say `priority` by number (1 is the most urgent) and
            `timeout` in microseconds.
        traceparent: Header of that name; one that is not of W3C's form is ignored, as W3C asks.

    Raises:
        Refused, InvalidRequest: A name is not known, or a value cannot be used.
    """
    fields = dict(parameters)
    if "timeout" in fields:
        timeout = fields.pop("timeout")
        if type(timeout) is not int or not 0 <= timeout <= 1000 * DEADLINE_MS_MAX:
            limit = f"0, for none, to {1000 * DEADLINE_MS_MAX}"
            raise bad(f"timeout is {timeout!r:.80}; send microseconds as an integer from {limit}")
        if timeout:
            fields.setdefault("deadline_ms", timeout / 1000)
    priority = fields.get("priority", "normal")
    if type(priority) is int and 0 <= priority <= len(PRIORITIES):
        fields["priority"] = ("normal", *PRIORITIES)[priority]
    elif priority not in PRIORITIES:
        said = f"send {', '.join(PRIORITIES)}, or 1 to {len(PRIORITIES)}, 1 being {PRIORITIES[0]}"
        raise bad(f"priority is {priority!r:.80}; {said}")
    if unknown := sorted(fields.keys() - set(NAMES), key=repr):  # msgpack has names of two types
        raise bad(f"parameter {unknown[0]!r:.80} is not known; there are {', '.join(NAMES)}")
    if fields.get("deadline_ms") is None:
        fields["deadline_ms"] = DEADLINE_MS
    deadline_ms = fields["deadline_ms"]
    if type(deadline_ms) not in (int, float) or not 0 < deadline_ms <= DEADLINE_MS_MAX:
        limit = f"above 0, and of {DEADLINE_MS_MAX} at most"
        raise bad(f"deadline_ms is {deadline_ms!r:.80}; send a number of milliseconds {limit}")
    return Options(traceparent=traceparent if _TRACE.fullmatch(traceparent) else "", **fields)
