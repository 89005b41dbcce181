"""Builds checked requests; shared by the synchronous and the asyncio producer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.errors import InvalidRequest, PayloadTooLarge
from producer.messages import PRIORITIES, Request
from producer.options import Options
from producer.protocol import wire
from producer.protocol.checks import checked_context, checked_contexts, checked_quietly, unknown_lane
from producer.protocol.maps import builder
from producer.sampling import sample_key
from producer.settings import ProducerSettings

_NO_CONTEXT = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request ready to be sent.

    Attributes:
        deadline_ms: Relative, as asked for; 0 for none.
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
    """Checks and encodes several with the same options, submitted at the same moment.

    Raises:
        InvalidRequest: The first wrong one refuses all.
    """
    normalize, outgoing = options.normalize, Preparer(options, client, settings, at_ms).outgoing
    with np.errstate(all="ignore"):
        return [outgoing(checked_quietly(context, normalize=normalize)) for context in contexts]


def prepare_batch(
    contexts: Any, options: Options, client: str, settings: ProducerSettings, at_ms: float | None = None
) -> Outgoing:
    """Checks and encodes a batch: one request of many contexts, shape (n, 5, 768).

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

    Raises:
        UnknownLane: The settings do not know the lane.
    """

    def __init__(
        self, options: Options, client: str, settings: ProducerSettings, at_ms: float | None
    ) -> None:
        if options.lane not in settings.lanes:
            raise unknown_lane(options.lane, settings.lanes)
        self._options = options
        self._submitted_at_ms = time.time() * 1000 if at_ms is None else at_ms
        self._deadline_ms = options.deadline_ms or 0.0
        self._expires_at_ms = self._submitted_at_ms + self._deadline_ms if self._deadline_ms else 0.0
        self._level = 1 + PRIORITIES.index(options.priority)
        self._encoder = _encoder(options, client, settings.encoder)

    def outgoing(self, array: NDArray[np.floating]) -> Outgoing:
        """The request of one context (5, 768), or of a batch (n, 5, 768).

        Raises:
            PayloadTooLarge: It says by how much.
        """
        options, batched = self._options, array.ndim == 3
        request_id = options.request_id or secrets.token_urlsafe(16)
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
                sample_key(request_id, options.sequence, options.position)
                if options.sequence
                else request_id,
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
