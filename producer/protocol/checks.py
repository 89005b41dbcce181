"""Checks of a context before anything is sent; the worker runs the same rules on whole batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.errors import BadNorm, BadShape, InvalidRequest, NotFinite, PayloadTooLarge, UnknownLane
from producer.messages import BATCH_CONTEXTS_MAX, CONTEXT_SHAPE, CONTEXT_VECTORS, DIMENSIONS, NORM_TOLERANCE
from producer.windows import Windows

#: float16 and float32 are sent as they are.
_FLOATS = "ef"
_SQUARE_MIN, _SQUARE_MAX = (1 - NORM_TOLERANCE) ** 2, (1 + NORM_TOLERANCE) ** 2


def checked_context(context: Any, *, normalize: bool = False) -> NDArray[np.floating]:
    """Returns the context as float32 (float16 stays), or says what is wrong with it.

    Args:
        context: Anything that NumPy takes, shape (5, 768).
        normalize: Scale each row to unit norm instead of refusing other norms, which usually mean a wrong
            encoder or a missing step.

    Raises:
        BadShape, NotFinite, BadNorm: See producer/errors.py; a zero row has no norm to be scaled.
    """
    # A number near the limit of float32 has an infinite square, which is refused, not warned of.
    with np.errstate(all="ignore"):
        return checked_quietly(context, normalize=normalize)


def checked_quietly(context: Any, *, normalize: bool = False) -> NDArray[np.floating]:
    """Checks as `checked_context`, within an `np.errstate` of the caller's: that costs a third of a check."""
    ready = type(context) is np.ndarray and context.dtype.char in _FLOATS
    array = context if ready else _numbers(context, "context")
    if array.shape != CONTEXT_SHAPE:
        raise BadShape(f"context has shape {array.shape}; send exactly {CONTEXT_SHAPE}")
    rows: NDArray[np.float32] = array.astype(np.float32, copy=False)
    squares = np.vecdot(rows, rows)
    # A plain loop over five numbers is faster than NumPy; NaN, which compares as false, does not pass.
    for square in squares.tolist():
        if not _SQUARE_MIN <= square <= _SQUARE_MAX:
            break
    else:
        return array
    return _scaled(rows, np.sqrt(squares), normalize)


def _scaled(rows: NDArray[np.float32], norms: NDArray[np.float32], normalize: bool) -> NDArray[np.float32]:
    """The rows at unit norm, if that is wanted and can be."""
    if not np.isfinite(norms).all():
        row = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise NotFinite(f"context vector {row} holds NaN or infinity; check the encoder's output")
    if not normalize:
        row = int(np.abs(norms - 1).argmax())
        raise BadNorm(
            f"context vector {row} has norm {norms[row]:.6g}; it must be 1 +- {NORM_TOLERANCE:g} "
            "(pass normalize=True to have it scaled)"
        )
    if not norms.all():
        raise BadNorm(f"context vector {int(np.argmin(norms))} is all zeros; it has no direction")
    scaled: NDArray[np.float32] = rows / norms[:, None]
    return scaled


def checked_contexts(
    contexts: Any, *, normalize: bool = False, limit: int = BATCH_CONTEXTS_MAX
) -> NDArray[np.floating]:
    """Works like `checked_context`, for many at once: shape (n, 5, 768), n from 1 to `limit`.

    Raises:
        PayloadTooLarge: More than `limit`.
        BadShape, NotFinite, BadNorm: The text begins with the number of the context.
    """
    array = _numbers(contexts, "contexts")
    if array.ndim != 3 or array.shape[1:] != CONTEXT_SHAPE or not len(array):
        raise BadShape(f"contexts have shape {array.shape}; send (n, 5, 768) with n >= 1")
    _check_count(len(array), limit)
    rows: NDArray[np.float32] = array.astype(np.float32, copy=False)
    bad = np.flatnonzero(~are_unit(rows).all(axis=1))
    if not len(bad):
        return array
    scaled = rows.copy() if normalize else rows
    for row in bad.tolist():
        try:
            scaled[row] = checked_context(rows[row], normalize=normalize)
        except InvalidRequest as error:
            raise type(error)(f"contexts[{row}]: {error}") from None
    return scaled


def are_unit(vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tells which vectors, shape (..., 768), are finite and of unit norm: shape (...)."""
    with np.errstate(all="ignore"):
        rows: NDArray[np.float32] = vectors.astype(np.float32, copy=False)
        squares = np.vecdot(rows, rows)
    kept: NDArray[np.bool_] = (squares >= _SQUARE_MIN) & (squares <= _SQUARE_MAX)  # NaN is neither
    return kept


def checked_windows(windows: Windows, *, normalize: bool = False, limit: int = BATCH_CONTEXTS_MAX) -> Windows:
    """Works like `checked_contexts`, for contexts that share their vectors.

    Raises:
        PayloadTooLarge: More contexts than `limit`.
        BadShape: Vectors or ends have another shape or type, an end is out of range, they do not rise, or
            there are more vectors than the contexts can hold.
        NotFinite, BadNorm: The text begins with the number of the context.
    """
    vectors, ends = _numbers(windows.vectors, "vectors"), windows.ends
    if vectors.ndim != 2 or vectors.shape[1] != DIMENSIONS:
        raise BadShape(f"vectors have shape {vectors.shape}; send (m, {DIMENSIONS})")
    if type(ends) is not np.ndarray or ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends):
        raise BadShape(f"ends are {ends!r:.80}; send an array of integers of shape (n,) with n >= 1")
    _check_count(len(ends), limit)
    if ends[0] < CONTEXT_VECTORS - 1 or ends[-1] >= len(vectors) or (ends[1:] <= ends[:-1]).any():
        raise BadShape(f"ends do not rise from {CONTEXT_VECTORS - 1} to {len(vectors) - 1}, the last vector")
    if len(vectors) > CONTEXT_VECTORS * len(ends):
        raise BadShape(f"{len(vectors)} vectors for {len(ends)} contexts of five; leave out what none holds")
    if windows.checked:
        return windows
    good = are_unit(vectors)
    bad = np.flatnonzero(~good[windows.rows].all(axis=1))
    if not len(bad):
        return Windows(vectors=vectors, ends=ends)
    # Each is looked at as a context of its own, so that it gets the words of one, and the scale of one.
    scaled = vectors.astype(np.float32)
    for context in bad.tolist():
        rows = windows.rows[context]
        try:
            scaled[rows] = checked_context(vectors[rows], normalize=normalize)
        except InvalidRequest as error:
            raise type(error)(f"contexts[{context}]: {error}") from None
    return Windows(vectors=scaled, ends=ends)


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise PayloadTooLarge(f"{count} contexts in one message, the limit is {limit}; send several")


def unknown_lane(lane: str, lanes: tuple[str, ...]) -> UnknownLane:
    """The error for a lane that is not one of `lanes`."""
    return UnknownLane(f"lane {lane!r:.80} is not known; use one of {', '.join(lanes)}")


def checked_vector(vector: Any) -> NDArray[np.float32]:
    """Returns one (768,) unit-norm vector as float32; errors as `checked_context`."""
    array = _numbers(vector, "vector").astype(np.float32, copy=False)
    if array.shape != (DIMENSIONS,):
        raise BadShape(f"vector has shape {array.shape}; send exactly ({DIMENSIONS},)")
    with np.errstate(all="ignore"):
        norm = float(np.sqrt(np.vecdot(array, array)))
    if not np.isfinite(norm):
        raise NotFinite("vector holds NaN or infinity; check the encoder's output")
    if abs(norm - 1) > NORM_TOLERANCE:
        raise BadNorm(f"vector has norm {norm:.6g}; it must be 1 +- {NORM_TOLERANCE:g}")
    return array


def _numbers(value: Any, name: str) -> NDArray[Any]:
    """The value as an array of floats; only real numbers are taken, and nothing is guessed.

    NumPy would drop a mask, and make numbers of booleans among numbers; unsigned integers are quantised,
    with a zero of their own.
    """
    if type(value) is not np.ndarray:
        _check_parts(value, name)
    try:
        # The array that an object gives for itself may be masked too.
        found = np.asanyarray(value)
    except Exception as error:  # whatever the type at hand raises: a tensor with a gradient, RuntimeError
        raise BadShape(f"{name} is not an array of numbers: {error!s:.200}") from error
    if type(found) is not np.ndarray:
        _check_mask(found, name)
    array: NDArray[Any] = np.asarray(found)
    if array.dtype.char in _FLOATS:
        return array
    if array.dtype.kind not in "fi":
        what = "" if type(value) is np.ndarray else f" ({type(value).__name__:.80})"
        raise BadShape(f"{name}{what} holds values of type {array.dtype!s:.80}; send real numbers")
    with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return array.astype(np.float32)


def _check_parts(value: Any, name: str) -> None:
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            if type(item) is not float and type(item) is not int:
                _numbers(item, f"{name}[{number}]")


def _check_mask(array: NDArray[Any], name: str) -> None:
    """NumPy's masked arrays, and those of others that are arrays with a mask of booleans."""
    mask = getattr(array, "mask", None)
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.any():
        masked = np.argwhere(mask)
        place = ", ".join(map(str, masked[0].tolist()))
        raise BadShape(
            f"{name} is masked at [{place}], the first of {len(masked)} numbers that are not there; "
            "leave the context out, or fill them in"
        )
