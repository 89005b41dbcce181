"""Builds checked requests; shared by the synchronous and the asyncio producer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from producer.errors import InvalidRequest, PayloadTooLarge
from producer.messages import BATCH_BYTES_MAX, PAYLOAD_BYTES_MAX, PRIORITIES, Request
from producer.options import Options
from producer.protocol import wire
from producer.protocol.checks import checked_contexts, checked_quietly, checked_windows, unknown_lane
from producer.sampling import sample_key
from producer.settings import ProducerSettings
from producer.windows import Windows

_Encoded = tuple[Options, wire.RequestEncoder]
_NO_CONTEXT = np.empty((0, 0), np.float32)


class Outgoing(NamedTuple):
    """A request ready to be sent.

    Attributes:
        level: 1 for the first of `PRIORITIES`, and so on.
        call: A mark of this submit and its repeats alone; "-" where the id is one.
        deadline_ms: Relative, as asked for; 0 for none.
        named: True if the caller chose the id; ours are random and never come twice.
        contexts: Their number.
        batched: True for a batch; one of a single context is one too.
        submitted_at_ms: By the server's clock.
    """

    #: These four, in this order, are the arguments of lua/submit.lua.
    id: str
    level: int
    call: str
    payload: bytes
    sample_key: str
    deadline_ms: float
    provisional: bool
    named: bool
    contexts: int
    batched: bool
    submitted_at_ms: float


def new_id() -> str:
    """22 characters, 128 random bits."""
    return secrets.token_urlsafe(16)


def prepare(
    context: Any,
    options: Options,
    client: str,
    settings: ProducerSettings,
    at_ms: float | None = None,
    traceparents: Sequence[str] = (),
) -> Outgoing:
    """Checks and encodes one request, submitted at `at_ms` of the server's clock, or now by the one here."""
    return prepare_all([context], options, client, settings, at_ms, traceparents)[0]


def prepare_all(
    contexts: Iterable[Any],
    options: Options | Iterable[Options],
    client: str,
    settings: ProducerSettings,
    at_ms: float | None = None,
    traceparents: Sequence[str] = (),
) -> list[Outgoing]:
    """Checks and encodes several requests, submitted at the same moment; the first wrong one refuses all.

    Args:
        traceparents: None, or one for each, in place of that of its options.
    """
    at_ms = time.time() * 1000 if at_ms is None else at_ms
    if isinstance(options, Options) and not traceparents:
        each: Iterable[_Encoded] = repeat((options, _encoder(options, client, settings.encoder)))
    else:
        each = _each(options, client, settings.encoder, traceparents)
    with np.errstate(all="ignore"):
        return [
            _outgoing(checked_quietly(context, normalize=one.normalize), one, encoder, settings, at_ms)
            for context, (one, encoder) in zip(contexts, each, strict=False)
        ]


def prepare_batch(
    contexts: Any,
    options: Options,
    client: str,
    settings: ProducerSettings,
    at_ms: float | None = None,
    traceparent: str = "",
) -> Outgoing:
    """Checks and encodes a batch: one request of many contexts, shape (n, 5, 768), or `Windows`."""
    limit, normalize = settings.batch_contexts_max, options.normalize
    encoder = _encoder(options, client, settings.encoder)
    if traceparent:
        encoder = encoder.traced(traceparent)
    if isinstance(contexts, Windows):
        windows = checked_windows(contexts, normalize=normalize, limit=limit)
        array, count, encoder = windows.vectors, len(windows), encoder.windowed(windows)
    else:
        array = checked_contexts(contexts, normalize=normalize, limit=limit)
        count = len(array)
    if count > 1 and (options.sequence or options.position >= 0):
        raise InvalidRequest("sequence and position name one context; leave them out of a batch of several")
    at_ms = time.time() * 1000 if at_ms is None else at_ms
    return _outgoing(array, options, encoder, settings, at_ms, count)


def prepare_batches(
    contexts: Iterable[Any],
    options: Options | Iterable[Options],
    client: str,
    settings: ProducerSettings,
    at_ms: float | None = None,
    traceparents: Sequence[str] = (),
) -> list[Outgoing]:
    """Checks and encodes batches; the arguments as `prepare_all`."""
    each = repeat(options) if isinstance(options, Options) else options
    triples = zip(contexts, each, traceparents or repeat(""), strict=False)
    return [prepare_batch(batch, one, client, settings, at_ms, trace) for batch, one, trace in triples]


def _each(
    options: Options | Iterable[Options], client: str, encoder: str, traceparents: Iterable[str]
) -> Iterable[_Encoded]:
    """Options and encoder of each request, with its trace context where there are some."""
    every = repeat(options) if isinstance(options, Options) else options
    each = ((one, _encoder(one, client, encoder)) for one in every)
    if not traceparents:
        return each
    return ((one, of.traced(trace)) for (one, of), trace in zip(each, traceparents, strict=False))


def _outgoing(
    array: NDArray[np.floating],
    options: Options,
    encoder: wire.RequestEncoder,
    settings: ProducerSettings,
    at_ms: float,
    contexts: int = 0,
) -> Outgoing:
    """The request of one context (5, 768), or of a batch of `contexts`, from the bytes of this array."""
    if options.lane not in settings.lanes:
        raise unknown_lane(options.lane, settings.lanes)
    batched, named = contexts > 0, bool(options.request_id)
    request_id = options.request_id or secrets.token_urlsafe(16)
    deadline_ms = options.deadline_ms or 0.0
    expires_at_ms = at_ms + deadline_ms if deadline_ms else 0.0
    payload = encoder.encode(request_id, array, at_ms, expires_at_ms)
    bytes_max = BATCH_BYTES_MAX if batched else PAYLOAD_BYTES_MAX
    if len(payload) > bytes_max:
        raise PayloadTooLarge(
            f"the request has {len(payload)} bytes, the limit is {bytes_max}; "
            "shorten sequence, domain or traceparent"
        )
    key = sample_key(request_id, options.sequence, options.position) if options.sequence else request_id
    level, call = 1 + PRIORITIES.index(options.priority), new_id()[:11] if named else "-"
    sent = request_id, level, call, payload
    return Outgoing(*sent, key, deadline_ms, options.provisional, named, contexts or 1, batched, at_ms)


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
        escalate=options.escalate,
        provisional=options.provisional,
        traceparent=options.traceparent,
        priority=options.priority,
    )
    return wire.RequestEncoder(shared)
