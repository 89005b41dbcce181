"""The compiled loops of `amn/kernel.c`, from array to array; the callers have the same in NumPy.

The file is built when the package is installed, if there is a C compiler (`pip install`, optional in
setup.py). `READY` says whether it was, and whether this processor can run it; `WHY`, what is in the way.
It is called through ctypes, which lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
#: Contexts a call of `amn_forward`.
CALL_MAX = 8
#: As in amn/kernel.c: count both up when a function, an argument or a structure changes. A library that
#: was built before is not called then.
_VERSION = 2
_INT16_MAX, _BYTE_MAX, _MIDDLE = 32767, 127, 128


def _load() -> tuple[Any, str]:
    """The library, and nothing; or None, and why: what `amn doctor` explains."""
    found = importlib.util.find_spec("amn._kernel")
    if found is None or found.origin is None:
        return None, "not built"
    try:
        library = ctypes.CDLL(found.origin)
    except OSError:
        return None, "outdated"
    if getattr(library, "amn_version", int)() != _VERSION:
        return None, "outdated"
    return (library, "") if library.amn_supported() else (None, "processor")


_LIBRARY, WHY = _load()
READY = _LIBRARY is not None


def _at(array: NDArray[Any]) -> int:
    """Where the first number is; half the time of `array.ctypes.data`."""
    address: int = array.__array_interface__["data"][0]
    return address


def _floats(array: NDArray[Any]) -> Array:
    """As the loops read it: float32, row by row, each number at an address that is a multiple of four."""
    made = np.ascontiguousarray(array, np.float32)
    return made if made.flags.aligned else made.copy()


_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Structure(ctypes.Structure):
    """Keeps the arrays alive whose addresses it holds."""

    def fill(self, **values: Any) -> None:
        self.kept = values
        for name, value in values.items():
            setattr(self, name, _at(value) if isinstance(value, np.ndarray) else value)


class _Matrix(_Structure):
    _fields_ = (("codes", _P), ("scale", _P), ("rows", _I), ("width", _I))


class _Network(_Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("both", "key", "detect", "recall")),
        *((name, _P) for name in ("gram", "gram_bias", "scores", "position")),
        *((name, _P) for name in ("detect_bias", "recall_bias")),
        *((name, _I) for name in ("familiar", "paired")),
        *((name, _F) for name in ("trust_slope", "trust_offset", "residual_max")),
    )


class _References(_Structure):
    _fields_ = (("vectors", _P), ("codes", _P), ("scale", _P), ("count", _I), ("error", _F))


class Network:
    """The bounded layout for few contexts, weights as int16.

    Args:
        matrices: `both`, `key`, `detect`, `recall`, each (out, in), float32.
        fields: The other fields of `network` in kernel.c.
    """

    def __init__(self, matrices: Mapping[str, Array], **fields: Array | int | float) -> None:
        self._network = _Network()
        self._network.fill(**{name: _narrow(array) for name, array in matrices.items()}, **fields)
        self._address = ctypes.addressof(self._network)

    def __call__(self, contexts: Array) -> tuple[Array, Array]:
        """(B, 5, 768) -> answers (B, 768) and how far each context is trusted, (B,), float32."""
        contexts = _floats(contexts)
        count, _, width = contexts.shape
        answers, trust = np.empty((count, width), np.float32), np.empty(count, np.float32)
        for i in range(0, count, CALL_MAX):
            some = min(CALL_MAX, count - i)
            _forward(self._address, _at(contexts[i:]), some, _at(answers[i:]), _at(trust[i:]))
        return answers, trust


class Layer:
    """A matrix (out, in), float32, kept as int16."""

    def __init__(self, weights: Array) -> None:
        self._matrix = _narrow(weights)
        self._address, self._rows = ctypes.addressof(self._matrix), len(weights)

    def __call__(self, rows: Array) -> Array:
        """(B, in) -> (B, out), float32."""
        rows = _floats(rows)
        made = np.empty((len(rows), self._matrix.rows), np.float32)
        _product(self._address, _at(rows), len(rows), _at(made))
        return made[:, : self._rows]


def _narrow(weights: Array) -> _Matrix:
    """(out, in) as int16 with a scale for each row: off by at most a 65,534th of its largest number."""
    weights = np.pad(weights, ((0, -len(weights) % 4), (0, 0)))  # whole tiles
    scale = np.maximum(np.abs(weights).max(axis=1), np.float32(1e-30)) / np.float32(_INT16_MAX)
    matrix = _Matrix()
    matrix.fill(
        codes=np.rint(weights / scale[:, None]).astype(np.int16),
        scale=scale.astype(np.float32),
        rows=weights.shape[0],
        width=weights.shape[1],
    )
    return matrix


class References:
    """Exact search for the two nearest of some thousand vectors, a byte a number at first sight.

    Args:
        vectors: Shape (N, 768), float32, unit norm, contiguous.
    """

    def __init__(self, vectors: Array) -> None:
        scale = np.abs(vectors).max(axis=1) / np.float32(_BYTE_MAX)
        codes = np.rint(vectors / scale[:, None])
        error = float(np.linalg.norm(vectors - codes * scale[:, None], axis=1).max()) + 1e-6
        self._references = _References()
        self._references.fill(
            vectors=vectors,
            codes=(codes + _MIDDLE).astype(np.uint8),
            scale=scale,
            count=len(vectors),
            error=error,
        )
        self._address = ctypes.addressof(self._references)

    def top2(self, predictions: Array) -> tuple[Array, Array, NDArray[np.intp]]:
        """(B, 768) unit, float32 -> best and second best cosine, and the best one's row.

        Raises:
            MemoryError: There was none for four numbers a reference.
        """
        predictions, count = _floats(predictions), len(predictions)
        best, second = np.empty((2, count), np.float32)
        ids = np.empty(count, np.int64)
        if _top2(self._address, _at(predictions), count, _at(best), _at(second), _at(ids)):
            raise MemoryError("no memory to compare predictions with the reference bank")
        return best, second, ids


def features(contexts: Array, predictions: Array) -> NDArray[np.float64]:
    """As `amn.gain.features`."""
    contexts, predictions = _floats(contexts), _floats(predictions)
    made = np.empty((len(contexts), 5))
    _features(_at(contexts), _at(predictions), len(contexts), _at(made))
    return made


if READY:
    _forward, _top2, _features = _LIBRARY.amn_forward, _LIBRARY.amn_top2, _LIBRARY.amn_features
    _product = _LIBRARY.amn_product
    _forward.argtypes, _forward.restype = (_P, _P, _I, _P, _P), None
    _product.argtypes, _product.restype = (_P, _P, _I, _P), None
    _top2.argtypes, _top2.restype = (_P, _P, _I, _P, _P, _P), ctypes.c_int
    _features.argtypes, _features.restype = (_P, _P, _I, _P), None
