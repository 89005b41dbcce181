"""The options of one request: the keyword arguments of `submit` and `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from producer.errors import DeadlineExceeded, InvalidRequest
from producer.keys import valid_id
from producer.messages import DEFAULT_LANE, DEFAULT_PRIORITY, PRIORITIES, TEXT_LENGTH_MAX, Priority

DEADLINE_MS_MAX = 365 * 24 * 3600 * 1000.0
_INTEGER_MAX = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one request.

    Attributes:
        lane: Kind of traffic (settings.lanes).
        tokens: Token equivalent of the context; over the policy's limit it is escalated.
        deadline_ms: Time from now after which no answer is wanted; None for no deadline.
        sequence: Id of the document; with `position`, the next request of the same sequence is
            the truth of this one.
        position: Index of the newest context vector in the sequence.
        domain: Explicit domain of the text, for the drift slices.
        escalate: Ask for a fallback's answer, whatever the scores say: the hard rule `asked_for`.
        provisional: Also send the fast answer at once when the request is escalated.
        normalize: Scale the rows to unit norm instead of refusing other norms.
        traceparent: W3C trace context; a producer that traces puts its own span below it, in place of
            the span that is the current one.
        request_id: Your own id; the same id twice within the window is one request.
        priority: "high", "normal" or "low": what waits at a higher level is served first, and each
            level is sure of a share (docs/wire.md).

    Raises:
        InvalidRequest: A field has a wrong type or value; checked here once, also for many requests.
        DeadlineExceeded: `deadline_ms` is not positive.
    """

    lane: str = DEFAULT_LANE
    tokens: int = 0
    deadline_ms: float | None = None
    sequence: str = ""
    position: int = -1
    domain: str = ""
    escalate: bool = False
    provisional: bool = False
    normalize: bool = False
    traceparent: str = ""
    request_id: str = ""
    priority: Priority = DEFAULT_PRIORITY

    def __post_init__(self) -> None:
        for name in ("lane", "sequence", "domain", "traceparent", "request_id", "priority"):
            value = getattr(self, name)
            if type(value) is not str or len(value) > TEXT_LENGTH_MAX or not value.isascii():
                _check_text(name, value)
        for name in ("escalate", "provisional", "normalize"):
            if type(getattr(self, name)) is not bool:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r:.80}; send True or False")
        if type(self.tokens) is not int or not 0 <= self.tokens < _INTEGER_MAX:
            raise InvalidRequest(f"tokens is {self.tokens!r:.80}; send an int, 0 to {_INTEGER_MAX - 1}")
        if type(self.position) is not int or not -1 <= self.position < _INTEGER_MAX:
            raise InvalidRequest(f"position is {self.position!r:.80}; send an int, -1 to {_INTEGER_MAX - 1}")
        if self.request_id and not valid_id(self.request_id):
            raise InvalidRequest(
                f"request_id {self.request_id!r:.80} is not valid; use 1-64 letters, digits and '_.:-'"
            )
        if self.priority not in PRIORITIES:
            raise InvalidRequest(f"priority is {self.priority!r:.80}; send one of {', '.join(PRIORITIES)}")
        if self.deadline_ms is not None:
            _check_deadline(self.deadline_ms)


class OptionFields(TypedDict, total=False):
    """The fields of `Options` as keyword arguments, so that editors and type checkers know them."""

    lane: str
    tokens: int
    deadline_ms: float | None
    sequence: str
    position: int
    domain: str
    escalate: bool
    provisional: bool
    normalize: bool
    traceparent: str
    request_id: str
    priority: Priority


class SubmitFields(OptionFields, total=False):
    """The keyword arguments of `submit`, for the verbs that pass them on."""

    block: bool
    options: Options | None


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {value!r:.80}; send text of at most {TEXT_LENGTH_MAX} characters")
    if len(value) > TEXT_LENGTH_MAX:
        raise InvalidRequest(f"{name} has {len(value)} characters, the limit is {TEXT_LENGTH_MAX}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} is {value!r:.80}; it holds half a surrogate pair") from None


def _check_deadline(deadline_ms: object) -> None:
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float):
        raise InvalidRequest(f"deadline_ms is {deadline_ms!r:.80}; send a number of milliseconds from now")
    if not deadline_ms < DEADLINE_MS_MAX:
        raise InvalidRequest(f"deadline_ms is {deadline_ms}; send less than a year, or None for no deadline")
    if deadline_ms <= 0:
        raise DeadlineExceeded(f"deadline_ms is {deadline_ms}; nothing can be answered in the past")


DEFAULT_OPTIONS = Options()


def options_of(options: Options | None, fields: OptionFields) -> Options:
    """The options that a call was given: an `Options`, or its fields.

    Raises:
        InvalidRequest: Both; one would be ignored.
    """
    if not fields:
        return DEFAULT_OPTIONS if options is None else options
    if options is not None:
        names = ", ".join(fields)
        raise InvalidRequest(f"options, and {names} too; put all into the one Options, or name all fields")
    return Options(**fields)


def options_of_many(options: Options) -> Options:
    """The options of a stream of contexts.

    Raises:
        InvalidRequest: They name one context: each of the others would get its answer, or share its truth.
    """
    if options.request_id or options.position >= 0:
        raise InvalidRequest("request_id and position name one context; leave them out of predict_many")
    return options
