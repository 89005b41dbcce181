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
        Refused: A name is not known, or the deadline is too far.
        InvalidRequest, DeadlineExceeded: A value cannot be used.
    """
    fields = dict(parameters)
    if "timeout" in fields:
        timeout = fields.pop("timeout")
        if type(timeout) is not int or timeout < 0:
            raise bad(f"timeout is {timeout!r:.80}; send microseconds as an integer, or deadline_ms")
        if timeout and "deadline_ms" not in fields:
            fields["deadline_ms"] = timeout / 1000
    priority = fields.get("priority")
    if type(priority) is int:
        if not 0 <= priority <= len(PRIORITIES):
            raise bad(f"priority is {priority}; send 1 to {len(PRIORITIES)}, or {', '.join(PRIORITIES)}")
        fields["priority"] = PRIORITIES[priority - 1] if priority else "normal"
    if unknown := sorted(fields.keys() - set(NAMES)):
        raise bad(f"parameter {unknown[0]!r:.80} is not known; there are {', '.join(NAMES)}")
    if fields.get("deadline_ms") is None:
        fields["deadline_ms"] = DEADLINE_MS
    found = Options(traceparent=traceparent if _TRACE.fullmatch(traceparent) else "", **fields)
    if found.deadline_ms is not None and found.deadline_ms > DEADLINE_MS_MAX:
        raise bad(f"deadline_ms is {found.deadline_ms:g}; the gateway waits {DEADLINE_MS_MAX} at most")
    return found
