"""The retrieval layout, folded: what fallback workers serve.

1. The attention asks for one product of each successor, with the weighed sum of AMN's answer and the context
   vectors, in place of six; the product of the mean with AMN's answer is made after it has 768 numbers.
2. Compiled loops (amn/kernel/entries.h) take all steps in one call, over the memory's own bytes: nothing of a
   neighbour is copied. Where they were not built, the module serves as it is written.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from amn.kernel import bindings as kernel
from amn.kernel.bindings import INTEGER, POINTER
from amn.model.folded_bounded import FoldedBounded
from amn.model.memory import PROBES
from amn.model.retrieval import RetrievalAMN

Array = NDArray[np.float32]
_recall = kernel.function("amn_recall", POINTER, POINTER, POINTER, INTEGER, POINTER, result=ctypes.c_int)


class _Memory(kernel.Structure):
    _fields_ = (
        ("nearness", kernel.Panels),
        *((name, POINTER) for name in ("key_map", "next_map", "back", "keys", "nexts", "key_step")),
        *((name, POINTER) for name in ("next_step", "centroids", "half", "attention", "trust", "start")),
        ("probes", INTEGER),
    )


class FoldedRetrieval:
    """The folded first stage, and what the memory adds to its answers, in compiled loops."""

    def __init__(self, model: RetrievalAMN) -> None:
        self._first, self._memory = FoldedBounded(model.first).predict, _structure(model)

    def __call__(self, contexts: Array) -> Array:
        """(B, 5, 768) -> (B, 768), unit norm.

        Raises:
            ShapeError: The contexts have another shape.
            MemoryError: There was none for 48 numbers a cell.
        """
        first = self._first(contexts)
        contexts, answers = np.ascontiguousarray(contexts, np.float32), np.empty_like(first)
        if kernel.call(_recall, self._memory.address, contexts, first, len(first), answers):
            raise MemoryError("no memory to search the entries")
        return answers


def _structure(model: RetrievalAMN) -> _Memory:
    memory = {name: value.numpy() for name, value in model.memory.named_buffers()}
    fitted = {name: value.detach().numpy().copy() for name, value in model.named_parameters(recurse=False)}
    half = (memory["centroids"] ** 2).sum(1) / 2
    return _Memory().fill(
        **memory,
        **fitted,
        back=np.ascontiguousarray(fitted["next_map"].T),
        nearness=kernel.panels(memory["centroids"]),
        half=np.pad(half, (0, -len(half) % 16), constant_values=np.inf),
        probes=PROBES,
    )
