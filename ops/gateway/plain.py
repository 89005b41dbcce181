"""Bodies of the plain route, for who has no client of the Open Inference Protocol: JSON or msgpack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ops.gateway.errors import Refused, bad
from ops.gateway.tensors import load, mapping, numbers
from producer.messages import CONTEXT_SHAPE, DIMENSIONS
from producer.protocol.maps import pack, unpack

JSON, MSGPACK = "application/json", "application/msgpack"
_BYTES_MAX = 64 * 1024


def fields_of(body: bytes, media_type: str) -> dict[str, Any]:
    """The fields of a body.

    Raises:
        Refused: It is not what its type says, or of another type.
        WireError: It is no msgpack map with `version` 1, as the messages of docs/wire.md.
    """
    if media_type == MSGPACK:
        found = unpack(body, _BYTES_MAX)
        return {name: value for name, value in found.items() if name != "version"}
    if media_type != JSON:
        raise Refused(
            f"content-type is {media_type!r:.80}; send {JSON} or {MSGPACK}", 415, "unsupported_media_type"
        )
    return dict(mapping(load(body), "the body"))


def context_of(value: object) -> NDArray[np.floating]:
    """A context of shape (5, 768): numbers, or the bytes of little-endian float32 or float16."""
    return _array(value, CONTEXT_SHAPE, "context")


def vector_of(value: object) -> NDArray[np.floating]:
    """A vector of shape (768,), in the same forms."""
    return _array(value, (DIMENSIONS,), "vector")


def encode(message: Mapping[str, Any], media_type: str) -> bytes:
    """The body of an answer."""
    return pack(message) if media_type == MSGPACK else orjson.dumps(message)


def _array(value: object, shape: tuple[int, ...], name: str) -> NDArray[np.floating]:
    if not isinstance(value, bytes):
        return numbers(value, shape, name)
    count = int(np.prod(shape))
    if len(value) not in (4 * count, 2 * count):
        raise bad(f"{name} has {len(value)} bytes; {count} float32 have {4 * count}, float16 {2 * count}")
    return np.frombuffer(value, "<f4" if len(value) == 4 * count else "<f2").reshape(shape)
