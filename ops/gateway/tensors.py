"""Requests of the Open Inference Protocol v2: JSON, and the binary tensor extension behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ops.gateway.errors import Refused, bad
from producer.messages import BATCH_CONTEXTS_MAX, CONTEXT_SHAPE

INPUT = "context"
_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
_SHAPES = "[5, 768], or [n, 5, 768] for a batch"
#: Said by clients to all models; the outputs say the same of each.
BINARY_OUTPUTS = "binary_data_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A request as it was sent.

    Attributes:
        id: The caller's mark, which the answer bears; it has no other meaning.
        contexts: Shape (5, 768) or (n, 5, 768), float32 or float16.
        parameters: Of the request.
        outputs: Wanted outputs by name, and whether as binary; None for all.
        binary: Whether outputs are binary of which nothing else is said.
    """

    id: str
    contexts: NDArray[np.floating]
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool] | None
    binary: bool


def parse(body: bytes, head_bytes: str | None) -> Inference:
    """Reads a request.

    Args:
        head_bytes: Header Inference-Header-Content-Length: the length of the JSON before the tensors.

    Raises:
        Refused: It is not as the protocol wants it; with the byte at which.
    """
    end = len(body) if head_bytes is None else _length(head_bytes, len(body))
    message = mapping(load(body[:end]), "the request")
    parameters = dict(mapping(message.get("parameters", {}), "parameters"))
    binary = _flag(parameters.pop(BINARY_OUTPUTS, False), BINARY_OUTPUTS)
    name = message.get("id", "")
    if not isinstance(name, str) or len(name) > 512:
        raise bad("id must be text of at most 512 characters")
    inputs = message.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise bad(f"inputs must be a list of one tensor, {INPUT!r}")
    return Inference(
        id=name,
        contexts=_tensor(mapping(inputs[0], "inputs[0]"), body, end),
        parameters=parameters,
        outputs=_wanted(message.get("outputs"), binary),
        binary=binary,
    )


def load(text: bytes) -> Any:
    """The value of some JSON.

    Raises:
        Refused: It is none; with the byte at which.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # The place is counted in characters: before it all is valid, so it differs by what is beyond ASCII.
        offset = len(error.doc[: error.pos].encode("utf-8", "replace")) if error.doc else 0
        raise bad(f"the JSON is wrong at byte {offset}: {error.msg}", offset) from None


def mapping(value: object, name: str) -> Mapping[str, Any]:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise bad(f"{name} must be a JSON object")
    return value


def numbers(data: object, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """Numbers of JSON, nested or flat in row-major order, as an array of this shape.

    Raises:
        Refused: They are not numbers, or others than so many.
    """
    flat = data
    for _ in shape[1:]:
        if isinstance(flat, list) and flat and all(type(row) is list for row in flat):
            flat = list(itertools.chain.from_iterable(flat))
    if not isinstance(flat, list):
        raise bad(f"{name} must be a list of numbers")
    if len(flat) != math.prod(shape):
        raise bad(f"{name} has {len(flat)} values; shape {list(shape)} wants {math.prod(shape)}")
    if not set(map(type, flat)) <= {float, int}:
        at = next(number for number, value in enumerate(flat) if type(value) not in (float, int))
        raise bad(f"{name} has {flat[at]!r:.80} as value {at}; send numbers")
    with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return np.array(flat, np.float64).astype(np.float32).reshape(shape)


def _flag(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise bad(f"{name} is {value!r:.80}; send true or false")
    return value


def _length(text: str, body_bytes: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= body_bytes):
        raise bad(
            f"Inference-Header-Content-Length is {text!r:.80}; the body has {body_bytes} bytes, and the JSON "
            "comes first"
        )
    return int(text)


def _tensor(tensor: Mapping[str, Any], body: bytes, begin: int) -> NDArray[np.floating]:
    """The one input, of JSON or of the bytes from `begin` to the end of the body."""
    if tensor.get("name") != INPUT:
        raise bad(f"the input is called {tensor.get('name')!r:.80}; the model has {INPUT!r}")
    kind, shape = tensor.get("datatype"), _shape(tensor.get("shape"))
    if not isinstance(kind, str) or kind not in _TYPES:
        raise bad(f"datatype is {kind!r:.80}; send {' or '.join(_TYPES)}")
    said = mapping(tensor.get("parameters", {}), f"the parameters of {INPUT}")
    if unknown := sorted(said.keys() - {"binary_data_size"}):
        raise bad(f"parameter {unknown[0]!r:.80} of {INPUT} is not known; there is binary_data_size")
    left = len(body) - begin
    if "binary_data_size" not in said:
        if left:
            raise bad(f"{left} bytes follow the JSON, and no input has a binary_data_size", begin)
        if kind == "FP16":
            raise bad("FP16 has no form in JSON: send it as binary tensor, or FP32")
        return numbers(tensor.get("data"), shape, "data")
    wanted, size = math.prod(shape) * _TYPES[kind].itemsize, said["binary_data_size"]
    if "data" in tensor:
        raise bad("the input has data and a binary_data_size; send one of them")
    if type(size) is not int or size != wanted:
        raise bad(
            f"binary_data_size is {size!r:.80}; {kind} of shape {list(shape)} has {wanted} bytes", begin
        )
    if left != wanted:
        raise bad(f"the tensor begins at byte {begin} and has {wanted} bytes; {left} bytes follow", begin)
    return np.frombuffer(body, _TYPES[kind], offset=begin).reshape(shape)


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise bad(f"shape is {value!r:.80}; send {_SHAPES}")
    shape = tuple(value)
    if shape[-2:] != CONTEXT_SHAPE or len(shape) not in (2, 3) or min(shape) < 1:
        raise bad(f"shape is {value!r:.80}; send {_SHAPES}")
    if len(shape) == 3 and shape[0] > BATCH_CONTEXTS_MAX:
        said = f"{shape[0]} contexts in one request, the limit is {BATCH_CONTEXTS_MAX}; send several"
        raise Refused(said, 413, "payload_too_large")
    return shape


def _wanted(outputs: object, binary: bool) -> Mapping[str, bool] | None:
    if outputs is None:
        return None
    if not isinstance(outputs, list):
        raise bad("outputs must be a list")
    found = {}
    for number, output in enumerate(outputs):
        one = mapping(output, f"outputs[{number}]")
        said = mapping(one.get("parameters", {}), f"the parameters of outputs[{number}]")
        if unknown := sorted(said.keys() - {"binary_data"}):
            raise bad(f"parameter {unknown[0]!r:.80} of an output is not known; there is binary_data")
        if not isinstance(one.get("name"), str):
            raise bad(f"outputs[{number}] has no name")
        found[one["name"]] = _flag(said.get("binary_data", binary), f"binary_data of outputs[{number}]")
    return found or None
