"""Answers of the Open Inference Protocol v2, in JSON and with binary tensors; and of the plain route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ops.gateway.errors import bad
from ops.gateway.settings import MODEL, VERSION
from ops.gateway.tensors import Inference
from producer.messages import BatchReply, Reply, Timings

#: Outputs by name: datatype, and shape for n contexts; a lone context's vector has the shape [768].
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "vector": ("FP32", [-1, 768]),
    "confidence": ("FP32", [-1]),
    "margin": ("FP32", [-1]),
    "gain": ("FP32", [-1]),
    "served_by": ("BYTES", [-1]),
    "reasons": ("BYTES", [-1]),
    "shed": ("BYTES", [-1]),
    "policy": ("BYTES", [-1]),
}
_SAID = ("model", "bank", "policy", "degraded", "confidence_method", "margin_method")
_TIMINGS = [one.name for one in fields(Timings)]
HEAD_LENGTH = "inference-header-content-length"


def outputs_of(answer: Reply | BatchReply) -> dict[str, NDArray[np.float32] | list[str]]:
    """All outputs by name; those of text are lists, with a text for each context."""
    if isinstance(answer, Reply):
        count, reasons, sheds = 1, [",".join(answer.reasons)], [answer.shed]
        floats: dict[str, Any] = {
            "vector": answer.vector,
            "confidence": np.array([answer.confidence], np.float32),
            "margin": np.array([answer.margin], np.float32),
            "gain": np.array([answer.gain], np.float32),
        }
    else:
        count = len(answer)
        reasons = [",".join(answer.reasons(row)) for row in range(count)]
        sheds = [("", *answer.sheds)[number] for number in answer.shed.tolist()]
        floats = {
            "vector": answer.vectors,
            "confidence": answer.confidences,
            "margin": answer.margins,
            "gain": answer.gains,
        }
    served = {"served_by": [answer.served_by] * count, "policy": [answer.policy] * count}
    return floats | {"reasons": reasons, "shed": sheds} | served


def check(inference: Inference) -> None:
    """Refuses outputs that there are not, before anything is computed.

    Raises:
        Refused: One is.
    """
    for name in inference.outputs or ():
        if name not in OUTPUTS:
            raise bad(f"output {name!r:.80} is not known; there are {', '.join(OUTPUTS)}")


def encode(inference: Inference, answer: Reply | BatchReply) -> tuple[bytes, int | None]:
    """The body of an answer; and the length of its JSON, where tensors follow."""
    found = outputs_of(answer)
    wanted = inference.outputs or dict.fromkeys(OUTPUTS, inference.binary)
    tensors, parts = [], []
    for name, binary in wanted.items():
        values = found[name]
        shape = list(values.shape) if isinstance(values, np.ndarray) else [len(values)]
        tensor: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name][0], "shape": shape}
        if binary:
            parts.append(_bytes(values))
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = values if isinstance(values, list) else values.ravel().tolist()
        tensors.append(tensor)
    parameters: dict[str, Any] = {"request_id": answer.id} | {name: getattr(answer, name) for name in _SAID}
    parameters |= _times(answer)
    message = {"model_name": MODEL, "model_version": VERSION, "id": inference.id}
    head = orjson.dumps(message | {"parameters": parameters, "outputs": tensors})
    return b"".join([head, *parts]), len(head) if parts else None


def plain(reply: Reply, vector: Any) -> Mapping[str, Any]:
    """The answer of the plain route, with its vector in the form that the caller reads."""
    scores = {"confidence": reply.confidence, "margin": reply.margin, "gain": reply.gain}
    return {
        "request_id": reply.id,
        "vector": vector,
        **scores,
        "reasons": list(reply.reasons),
        "served_by": reply.served_by,
        "shed": reply.shed,
        **{name: getattr(reply, name) for name in _SAID},
        "timings": _times(reply),
    }


def _times(answer: Reply | BatchReply) -> dict[str, float]:
    return {name: getattr(answer.timings, name) for name in _TIMINGS}  # dataclasses.asdict copies each deeply


def _bytes(values: NDArray[np.float32] | Sequence[str]) -> bytes:
    """A tensor's bytes: little-endian numbers, or texts with four bytes of length before each."""
    if isinstance(values, np.ndarray):
        return values.astype("<f4", copy=False).tobytes()
    texts = [value.encode() for value in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
