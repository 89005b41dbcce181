"""Answers and failures as bytes, and back; a vector goes out as little-endian float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.errors import Undecodable
from producer.messages import BATCH_BYTES_MAX, DIMENSIONS, Answer, BatchReply, Failure, Reply
from producer.protocol import batches
from producer.protocol.maps import REQUIRED, WIRE_VERSION, Fields, builder, pack, shown, unpack

REPLY = Fields(
    id=(str, REQUIRED),
    vector=(bytes, REQUIRED),
    confidence=(float, REQUIRED),
    margin=(float, REQUIRED),
    reasons=(list, REQUIRED),
    served_by=(str, REQUIRED),
    provisional=(bool, REQUIRED),
    shed=(str, ""),
    **batches.TEXTS,
    traceparent=(str, ""),
    gain=(float, 0.0),
    tiers=(dict, {}),
    timings=(dict, {}),
)
#: In the order in which they go out, between the vector and the timings.
_PLAIN = ("confidence", "margin", "reasons", "served_by", "provisional", "shed", *batches.TEXTS)
FAILURE = Fields(
    id=(str, REQUIRED),
    code=(str, REQUIRED),
    message=(str, REQUIRED),
    retryable=(bool, False),
    traceparent=(str, ""),
)
_build_reply, _build_failure = builder(Reply), builder(Failure)
#: Fields of an answer that differ from request to request.
_ANSWER_FIELDS = 8


def encode_reply(reply: Answer) -> bytes:
    """Encodes an answer."""
    if isinstance(reply, BatchReply):
        return pack({"version": WIRE_VERSION, "status": "answered", **batches.encode(reply)})
    # Left out when they say nothing, as for most answers.
    rare: dict[str, object] = {"traceparent": reply.traceparent} if reply.traceparent else {}
    if reply.gain:
        rare["gain"] = reply.gain
    if reply.tiers:
        rare["tiers"] = dict(reply.tiers)
    return pack(
        {
            "version": WIRE_VERSION,
            "id": reply.id,
            "status": "answered",
            "vector": np.ascontiguousarray(reply.vector, dtype=batches.F4).data,
            **{name: getattr(reply, name) for name in _PLAIN},
            **rare,
            "timings": batches.timings_fields(reply.timings),
        }
    )


class AnswerEncoder:
    """Encodes the answers of one worker, whose shared fields are packed once: a third of the cost."""

    def __init__(self, shared: Reply, *, with_gain: bool = False) -> None:
        self._with_gain = with_gain
        fields = {
            "version": WIRE_VERSION,
            "status": "answered",
            "served_by": shared.served_by,
            "degraded": shared.degraded,
            "model": shared.model,
            "bank": shared.bank,
            "policy": shared.policy,
            "confidence_method": shared.confidence_method,
            "margin_method": shared.margin_method,
        }
        # A map of up to 15 pairs has a head of one byte; ours has more, so the parts' heads go.
        count = len(fields) + _ANSWER_FIELDS + with_gain
        self._heads = [b"\xde" + n.to_bytes(2, "big") + pack(fields)[1:] for n in (count, count + 1)]

    def encode(
        self,
        request_id: str,
        vector: NDArray[np.float32],
        scores: Sequence[float],
        verdict: tuple[tuple[str, ...], str, bool],
        timings: dict[str, float],
        traceparent: str = "",
    ) -> bytes:
        """One answer; its bytes decode to the same `Reply` as those of `encode_reply`.

        Args:
            vector: Shape (768,), float32, contiguous, unit norm.
            scores: Confidence and margin; the predicted gain too, if it is to be sent.
            verdict: Reasons, shed, provisional.
            timings: The fields of `Timings`.
            traceparent: The request's; left out when it has none.
        """
        fields: dict[str, object] = {
            "id": request_id,
            "vector": vector.data,
            "confidence": scores[0],
            "margin": scores[1],
            "reasons": verdict[0],
            "shed": verdict[1],
            "provisional": verdict[2],
            "timings": timings,
        }
        if self._with_gain:
            fields["gain"] = scores[2]
        if traceparent:
            fields["traceparent"] = traceparent
        return self._heads[bool(traceparent)] + pack(fields)[1:]


def encode_failure(failure: Failure) -> bytes:
    """Encodes a named failure."""
    fields = {name: getattr(failure, name) for name in ("code", "message", "retryable")}
    if failure.traceparent:
        fields["traceparent"] = failure.traceparent
    return pack({"version": WIRE_VERSION, "id": failure.id, "status": "failed", **fields})


def decode_reply(payload: bytes) -> Answer | Failure:
    """Decodes what a worker sent back.

    Raises:
        Undecodable: Not a reply of this format.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    message = unpack(payload, BATCH_BYTES_MAX)
    status = message.get("status")
    if status == "failed":
        return _build_failure(FAILURE.values(message))
    if status != "answered":
        raise Undecodable(f"reply status is {shown(status)}, expected 'answered' or 'failed'")
    if "vectors" in message:
        return batches.decode(message)
    values: list[Any] = list(REPLY.values(message))
    values[1] = decode_vector(values[1])
    reasons = values[4] = tuple(values[4])
    if reasons and set(map(type, reasons)) != {str}:
        raise Undecodable("field 'reasons' holds something other than text")
    if values[-2]:
        values[-2] = _tiers(values[-2])
    values[-1] = batches.build_timings(batches.TIMINGS.values(values[-1]))
    return _build_reply(values)


def _tiers(stored: dict[object, object]) -> dict[str, tuple[float, float]]:
    made = {}
    for model, pair in stored.items():
        numbers = [type(one) in (int, float) for one in pair] if type(pair) is list else []
        if type(model) is not str or numbers != [True, True]:
            raise Undecodable(
                f"field 'tiers' holds {shown(model)}: {shown(pair)}, expected text: [float, float]"
            )
        made[model] = (float(pair[0]), float(pair[1]))  # type: ignore[index]
    return made


def encode_vector(vector: NDArray[np.floating]) -> bytes:
    """A bare (768,) vector as little-endian float32 bytes (truth records)."""
    return np.ascontiguousarray(vector, dtype=batches.F4).tobytes()


def decode_vector(data: bytes) -> NDArray[np.float32]:
    """The inverse of `encode_vector`."""
    if len(data) != DIMENSIONS * 4:
        raise Undecodable(f"vector has {len(data)} bytes, expected {DIMENSIONS * 4}")
    return np.ndarray((DIMENSIONS,), batches.F4, data)
