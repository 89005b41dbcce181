"""The compiled loops of `amn/kernel/kernel.c`, from array to array; the callers have the same in NumPy.

The library is built when the package is installed, if there is a C compiler (`pip install`, optional in
setup.py). `READY` is true if it was, and if this processor can run it; `WHY` names what is in the way.
It is called through ctypes, which lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from amn.errors import ShapeError

Array = NDArray[np.float32]
#: The widest layer, and of a network the longest product and the most hidden scores, also in kernel.c.
LAYER_MAX, _PRODUCT_MAX, _PAIRED_MAX = 2304, 768, 127
#: Count it up, also in kernel.c, when a function, an argument or a structure changes. A library that was
#: built before is not called then.
_VERSION = 7
#: More of it leaves fewer references to be compared in full, and takes more time for each: measured.
_ENERGY = 0.965
#: These numbers also stand in amn/kernel/base.h.
_BLOCK, _ROWS, _LENGTH_MAX, _CODE_MAX, _WITH_TILES = 128, 16, 46200.0, 32000.0, 3


def _load() -> tuple[Any, str, int]:
    """The library, and nothing, and its level here; or None, and why: what `amn doctor` explains."""
    found = importlib.util.find_spec("amn.kernel._kernel")
    if found is None or found.origin is None:
        return None, "not built", 0
    try:
        library = ctypes.CDLL(found.origin)
    except OSError:
        return None, "outdated", 0
    if getattr(library, "amn_version", int)() != _VERSION:
        return None, "outdated", 0
    level = library.amn_supported()
    return (library, "", level) if level else (None, "processor", 0)


#: LEVEL: 1 with AVX2, 2 with AVX-512 VNNI too, 3 with tiles of bytes (AMX); all give the same bits.
LIBRARY, WHY, LEVEL = _load()
READY = LIBRARY is not None


def address_of(array: NDArray[Any]) -> int:
    """Returns the address of the first number, in half the time of `array.ctypes.data`."""
    address: int = array.__array_interface__["data"][0]
    return address


def function(name: str, *arguments: Any, result: Any = None) -> Any:
    """A loop of the library, told the types of its arguments; None where there is no library."""
    loop = getattr(LIBRARY, name, None)
    if loop is not None:
        loop.argtypes, loop.restype = arguments, result
    return loop


def call(loop: Any, *arguments: Any) -> Any:
    """Calls a loop of the library; of an array it gets the address of the first number."""
    return loop(
        *[
            argument.__array_interface__["data"][0] if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        ]
    )


def _floats(array: NDArray[Any]) -> Array:
    """Returns the array as the loops read it: float32, row by row, each address a multiple of four."""
    made = np.ascontiguousarray(array, np.float32)
    return made if made.flags.aligned else made.copy()


POINTER, INTEGER, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_forward = function("amn_forward", POINTER, POINTER, INTEGER, POINTER, POINTER)
_layer = function("amn_layer", POINTER, POINTER, INTEGER, POINTER)
_top2 = function("amn_top2", POINTER, POINTER, INTEGER, POINTER, POINTER, POINTER, result=ctypes.c_int)
_features = function("amn_features", POINTER, POINTER, INTEGER, POINTER)
_gain = function("amn_gain", POINTER, POINTER, POINTER, INTEGER, POINTER)


class Structure(ctypes.Structure):
    """An argument of a loop; it keeps the arrays alive whose addresses it holds."""

    def fill(self, **values: Any) -> Self:
        """Sets fields: numbers, structures, and the addresses of arrays."""
        self.kept, self.address = values, ctypes.addressof(self)
        for name, value in values.items():
            setattr(self, name, address_of(value) if isinstance(value, np.ndarray) else value)
        return self


class Panels(Structure):
    """A matrix as panels.h reads it."""

    _fields_ = (
        *((name, POINTER) for name in ("codes", "bytes", "scale")),
        *((name, INTEGER) for name in ("rows", "width", "level")),
    )


class _Network(Structure):
    _fields_ = (
        *((name, Panels) for name in ("both", "key", "detect", "recall")),
        *((name, POINTER) for name in ("gram", "gram_bias", "scores", "position")),
        *((name, POINTER) for name in ("detect_bias", "recall_bias")),
        *((name, INTEGER) for name in ("familiar", "paired")),
        *((name, REAL) for name in ("trust_slope", "trust_offset", "residual_max")),
    )


class _References(Structure):
    _fields_ = (
        *((name, Panels) for name in ("turn", "turned")),
        *((name, POINTER) for name in ("vectors", "rest")),
        ("count", INTEGER),
        *((name, REAL) for name in ("turn_error", "error")),
    )


class _Worth(Structure):
    _fields_ = (
        *((name, POINTER) for name in ("coefficients", "edges", "weights")),
        *((name, INTEGER) for name in ("terms", "edge_count")),
        ("intercept", ctypes.c_double),
    )


class Network:
    """The bounded layout.

    Args:
        matrices: `both`, `key`, `detect`, `recall`, each (out, in), float32.
        fields: The other fields of `network` in kernel.c.

    Raises:
        ValueError: It is larger than the loops have room for.
    """

    def __init__(self, matrices: Mapping[str, Array], **fields: Array | int | float) -> None:
        longest = max(max(array.shape) for array in matrices.values())
        paired, hidden = fields["paired"], matrices["recall"].shape[1]
        if longest > _PRODUCT_MAX or paired > _PAIRED_MAX or hidden % _ROWS:
            raise ValueError(
                f"the loops have room for products of {_PRODUCT_MAX}, {_PAIRED_MAX} paired scores and "
                f"hidden ones by {_ROWS}; this network has {longest}, {paired} and {hidden}"
            )
        made = {name: panels(array) for name, array in matrices.items()}
        self._network = _Network().fill(**made, **fields)

    def __call__(self, contexts: Array, trust: Array | None = None) -> Array:
        """(B, 5, 768) -> answers (B, 768), float32; fills `trust` (B,), float32, if it is given.

        Raises:
            ShapeError: The contexts have another shape.
        """
        if contexts.shape[1:] != (5, 768):
            raise ShapeError.of(contexts.shape)
        contexts, count = _floats(contexts), len(contexts)
        answers = np.empty((count, 768), np.float32)
        trust = np.empty(count, np.float32) if trust is None else trust
        call(_forward, self._network.address, contexts, count, answers, trust)
        return answers


class Layer:
    """A matrix (out, in), float32, kept as int16.

    Raises:
        ValueError: `in` is no multiple of eight, or more than `LAYER_MAX`.
    """

    def __init__(self, weights: Array) -> None:
        if weights.shape[1] % 8 or weights.shape[1] > LAYER_MAX:
            raise ValueError(f"a layer of {weights.shape}: in must be a multiple of 8, up to {LAYER_MAX}")
        self._panels, self._rows = panels(weights), len(weights)

    def __call__(self, rows: Array) -> Array:
        """(B, in) -> (B, out), float32."""
        rows = _floats(rows)
        if rows.ndim != 2 or rows.shape[1] != self._panels.width:
            raise ValueError(f"rows of shape {rows.shape}, the layer takes (B, {self._panels.width})")
        made = np.empty((len(rows), self._panels.rows), np.float32)
        call(_layer, self._panels.address, rows, len(rows), made)
        return made[:, : self._rows]


def panels(weights: Array) -> Panels:
    """(out, in) as int16 with a scale for each row, in the order and the bounds of panels.h."""
    rows, width = weights.shape
    weights = np.pad(weights, ((0, -rows % _ROWS), (0, -width % 8)))
    squares = np.add.reduceat(weights.astype(np.float64) ** 2, range(0, width, _BLOCK), axis=1)
    longest = np.sqrt(squares.max(axis=1)) / _LENGTH_MAX
    scale = np.maximum(np.maximum(np.abs(weights).max(axis=1) / _CODE_MAX, longest), 1e-30)
    codes = np.rint(weights / scale[:, None]).astype(np.int16)
    pairs = codes.reshape(len(codes) // _ROWS, _ROWS, -1, 2).swapaxes(1, 2)
    return Panels().fill(
        codes=np.ascontiguousarray(pairs),
        bytes=_tiles(codes) if LEVEL >= _WITH_TILES and width <= _PRODUCT_MAX else None,
        scale=scale.astype(np.float32),
        rows=codes.shape[0],
        width=codes.shape[1],
        level=LEVEL,
    )


def _tiles(codes: NDArray[np.int16]) -> NDArray[np.int8]:
    """Codes (rows, width) as bytes in the order that panels.h names."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 64)))
    both = np.stack([(padded >> 8).astype(np.int8), (padded & 255).astype(np.uint8).view(np.int8)])
    # Byte, panel, row, 64 columns, 4 of them, column.
    apart = both.reshape(2, len(codes) // _ROWS, _ROWS, -1, 16, 4)
    return np.ascontiguousarray(apart.transpose(1, 3, 0, 4, 2, 5))


def unpacked(made: Panels, rows: int, width: int) -> Array:
    """Returns the values that `panels` kept, (rows, width)."""
    codes, scale = made.kept["codes"], made.kept["scale"]
    kept: Array = codes.swapaxes(1, 2).reshape(made.rows, made.width) * scale[:, None]
    return kept[:rows, :width]


def _directions(vectors: Array) -> Array:
    """The fewest orthonormal directions, (d, 768), that hold `_ENERGY` of these vectors."""
    try:
        values, columns = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    except np.linalg.LinAlgError:  # where vectors have few directions; any will do
        return np.eye(vectors.shape[1], dtype=np.float32)
    held = np.cumsum(values[::-1]) / values.sum()
    d = _ROWS * (1 + int(np.searchsorted(held, _ENERGY)) // _ROWS)
    return np.ascontiguousarray(columns[:, ::-1].T[:d], np.float32)


class References:
    """Exact search for the two nearest of some thousand vectors, most of them ruled out by a bound.

    Args:
        vectors: Shape (N, 768), unit norm.
    """

    def __init__(self, vectors: Array) -> None:
        vectors = _floats(vectors)
        directions = _directions(vectors)
        flat = vectors @ directions.T  # (N, d)
        turn, turned = panels(directions), panels(flat)
        self._references = _References().fill(
            turn=turn,
            turned=turned,
            vectors=vectors,
            rest=np.linalg.norm(vectors - flat @ directions, axis=1) + np.float32(1e-5),
            count=len(vectors),
            turn_error=float(np.linalg.norm(directions - unpacked(turn, *directions.shape), 2)),
            error=float(np.linalg.norm(flat - unpacked(turned, *flat.shape), axis=1).max()),
        )

    def top2(self, predictions: Array) -> tuple[Array, Array, NDArray[np.intp]]:
        """(B, 768) unit, float32 -> best and second best cosine, and the best one's row.

        Raises:
            MemoryError: There was none for 48 numbers a reference.
        """
        predictions, count = _floats(predictions).reshape(len(predictions), 768), len(predictions)
        best, second = np.empty((2, count), np.float32)
        ids = np.empty(count, np.int64)
        if call(_top2, self._references.address, predictions, count, best, second, ids):
            raise MemoryError("no memory to compare predictions with the reference bank")
        return best, second, ids


def _by_pairs(shape: tuple[int, ...], *arguments: Any) -> NDArray[np.float64]:
    """Calls a loop that makes numbers of this shape of each context and its prediction, which come last."""
    *loop, contexts, predictions = arguments
    contexts, predictions, count = _floats(contexts), _floats(predictions), len(contexts)
    if (contexts.shape, predictions.shape) != ((count, 5, 768), (count, 768)):
        raise ValueError(f"{contexts.shape} and {predictions.shape}: give (B, 5, 768) and (B, 768)")
    made = np.empty((count, *shape))
    call(*loop, contexts, predictions, count, made)
    return made


#: Contexts (B, 5, 768) and predictions (B, 768) to numbers (B, ...).
_Pairs = Callable[[Array, Array], NDArray[np.float64]]
#: Works like `amn.gate.gain.features`.
features: _Pairs = partial(_by_pairs, (5,), _features)


def gain(terms: int, edge_count: int, intercept: float, **numbers: NDArray[np.float64]) -> _Pairs:
    """`Calibration.gain` of the features, by one call; the arguments are fields of `worth` in kernel.c."""
    arrays: Any = {name: np.ascontiguousarray(array, np.float64) for name, array in numbers.items()}
    worth = _Worth().fill(terms=terms, edge_count=edge_count, intercept=intercept, **arrays)
    return partial(_by_pairs, (), _gain, ctypes.byref(worth))
