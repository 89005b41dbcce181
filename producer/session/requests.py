"""Builds checked requests; shared by the synchronous and the asyncio producer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge
from producer.keys import valid_id
from producer.messages import DEFAULT_LANE, DEFAULT_PRIORITY, PRIORITIES, Request
from producer.protocol import wire
from producer.protocol.checks import checked_context, checked_contexts, checked_lane, checked_quietly, quiet
from producer.protocol.fields import builder
from producer.sampling import sample_key
from producer.settings import ProducerSettings

DEADLINE_MS_MAX = 365 * 24 * 3600 * 1000.0
_INTEGER_MAX = 2**31
_NO_CONTEXT = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one request is to be served; the keyword arguments of `submit` and `predict`.

    Attributes:
        lane: Kind of traffic (settings.lanes).
        tokens: Token equivalent of the context; over the policy's limit it is escalated.
        deadline_ms: Time from now after which no answer is wanted; None for no deadline.
        sequence: Id of the document; with `position`, the next request of the same sequence is
            the truth of this one.
        position: Index of the newest context vector in the sequence.
        domain: Explicit domain of the text, for the drift slices.
        provisional: Also send the fast answer at once when the request is escalated.
        normalize: Scale the rows to unit norm instead of refusing other norms.
        traceparent: W3C trace context.
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
    provisional: bool = False
    normalize: bool = False
    traceparent: str = ""
    request_id: str = ""
    priority: str = DEFAULT_PRIORITY

    def __post_init__(self) -> None:
        for name in ("lane", "sequence", "domain", "traceparent", "request_id", "priority"):
            value = getattr(self, name)
            if type(value) is not str or len(value) > wire.TEXT_LENGTH_MAX or not value.isascii():
                _check_text(name, value)
        for name in ("provisional", "normalize"):
            if type(getattr(self, name)) is not bool:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r:.80}; send True or False")
        if type(self.tokens) is not int or not 0 <= self.tokens < _INTEGER_MAX:
            raise InvalidRequest(f"tokens is {self.tokens!r:.80}; send the token count as an integer >= 0")
        if type(self.position) is not int or not -1 <= self.position < _INTEGER_MAX:
            raise InvalidRequest(f"position is {self.position!r:.80}; send an integer >= 0, or -1 for none")
        if self.request_id and not valid_id(self.request_id):
            raise InvalidRequest(
                f"request_id {self.request_id!r:.80} is not valid; use 1-64 letters, digits and '_.:-'"
            )
        if self.priority not in PRIORITIES:
            raise InvalidRequest(f"priority is {self.priority!r:.80}; send one of {', '.join(PRIORITIES)}")
        if self.deadline_ms is not None:
            _check_deadline(self.deadline_ms)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {value!r:.80}; send text")
    if len(value) > wire.TEXT_LENGTH_MAX:
        raise InvalidRequest(f"{name} has {len(value)} characters, the limit is {wire.TEXT_LENGTH_MAX}")
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


def options_of(options: Options | None, fields: Mapping[str, Any]) -> Options:
    """What a call was given: an `Options`, or its fields.

    Raises:
        InvalidRequest: Both; one would be ignored.
    """
    if not fields:
        return DEFAULT_OPTIONS if options is None else options
    if options is not None:
        raise InvalidRequest(
            f"options, and {', '.join(fields)} too; put all into the one Options, or name all fields"
        )
    return Options(**fields)


def options_of_many(options: Options) -> Options:
    """The options of a stream of contexts.

    Raises:
        InvalidRequest: They name one context: each of the others would get its answer, or share its truth.
    """
    if options.request_id or options.position >= 0:
        raise InvalidRequest("request_id and position name one context; leave them out of predict_many")
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request ready to be sent.

    Attributes:
        deadline_ms: As asked for; 0 for none.
        count: Contexts in it.
        named: Whether the caller chose the id; ours are random and never come twice.
        level: 1 for the first of `PRIORITIES`, and so on.
        call: A mark of this submit and its repeats alone; "-" where the id is one.
        batched: Whether it is a batch; one of a single context is one too.
    """

    id: str
    payload: bytes
    sample_key: str
    deadline_ms: float
    expires_at_ms: float
    provisional: bool
    named: bool
    level: int = 2
    call: str = "-"
    count: int = 1
    batched: bool = False


_build_outgoing = builder(Outgoing)


def new_id() -> str:
    """22 characters, 128 random bits."""
    return secrets.token_urlsafe(16)


def now_ms() -> float:
    """UTC epoch milliseconds, by the clock here."""
    return time.time() * 1000


def prepare(
    context: Any, options: Options, client: str, settings: ProducerSettings, at_ms: float | None = None
) -> Outgoing:
    """Checks and encodes one request.

    Args:
        context: Shape (5, 768), unit-norm rows, oldest first.
        at_ms: Server's clock; None for the clock here.

    Raises:
        InvalidRequest: One of its subclasses names what is wrong.
    """
    array = checked_context(context, normalize=options.normalize)
    return Preparer(options, client, settings, at_ms).outgoing(array)


def prepare_all(
    contexts: Iterable[Any],
    options: Options,
    client: str,
    settings: ProducerSettings,
    at_ms: float | None = None,
) -> list[Outgoing]:
    """As `prepare`, of several with the same options, submitted at the same moment.

    Raises:
        InvalidRequest: As `prepare`; the first wrong one refuses all.
    """
    normalize, outgoing = options.normalize, Preparer(options, client, settings, at_ms).outgoing
    with quiet():
        return [outgoing(checked_quietly(context, normalize=normalize)) for context in contexts]


def prepare_batch(
    contexts: Any, options: Options, client: str, settings: ProducerSettings, at_ms: float | None = None
) -> Outgoing:
    """Checks and encodes a batch: one request of many contexts.

    Args:
        contexts: Shape (n, 5, 768), unit-norm rows, oldest first.
        at_ms: As in `prepare`.

    Raises:
        InvalidRequest: One of its subclasses names what is wrong, and in which context.
    """
    if options.sequence or options.position >= 0:
        raise InvalidRequest("sequence and position name one context; leave them out of a batch")
    limit = settings.batch_contexts_max
    array = checked_contexts(contexts, normalize=options.normalize, limit=limit)
    return Preparer(options, client, settings, at_ms).outgoing(array)


class Preparer:
    """Encodes checked contexts that share their options and the moment of their submit.

    What they share is looked up and worked out here, once.
    """

    def __init__(
        self, options: Options, client: str, settings: ProducerSettings, at_ms: float | None
    ) -> None:
        self._options, self._lanes = options, settings.lanes
        self._submitted_at_ms = now_ms() if at_ms is None else at_ms
        self._deadline_ms = options.deadline_ms or 0.0
        self._expires_at_ms = self._submitted_at_ms + self._deadline_ms if self._deadline_ms else 0.0
        self._level = 1 + PRIORITIES.index(options.priority)
        self._encoder = _encoder(options, client, settings.encoder)

    def outgoing(self, array: NDArray[np.floating]) -> Outgoing:
        """The request of one context (5, 768), or of a batch (n, 5, 768).

        Raises:
            UnknownLane, PayloadTooLarge: As they say.
        """
        options, batched = self._options, array.ndim == 3
        request_id = options.request_id or new_id()
        checked_lane(options.lane, self._lanes)
        payload = self._encoder.encode(request_id, array, self._submitted_at_ms, self._expires_at_ms)
        bytes_max = wire.BATCH_BYTES_MAX if batched else wire.PAYLOAD_BYTES_MAX
        if len(payload) > bytes_max:
            raise PayloadTooLarge(
                f"the request has {len(payload)} bytes, the limit is {bytes_max}; "
                "shorten sequence, domain or traceparent"
            )
        # In the order of the fields: half the time of the generated constructor.
        return _build_outgoing(
            (
                request_id,
                payload,
                sample_key(request_id, options.sequence, options.position),
                self._deadline_ms,
                self._expires_at_ms,
                options.provisional,
                bool(options.request_id),
                self._level,
                new_id()[:11] if options.request_id else "-",
                len(array) if batched else 1,
                batched,
            )
        )


@lru_cache(maxsize=16)
def _encoder(options: Options, client: str, encoder: str) -> wire.RequestEncoder:
    shared = Request(
        id="",
        reply_to=client,
        context=_NO_CONTEXT,
        lane=options.lane,
        tokens=options.tokens,
        encoder=encoder,
        sequence=options.sequence,
        position=options.position,
        domain=options.domain,
        provisional=options.provisional,
        traceparent=options.traceparent,
        priority=options.priority,
    )
    return wire.RequestEncoder(shared)
