"""Checks of a context before anything is sent; the worker runs the same rules on whole batches."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from producer.errors import BadNorm, BadShape, NotFinite, UnknownLane
from producer.messages import CONTEXT_SHAPE, DIMENSIONS, NORM_TOLERANCE


def checked_context(context: Any, *, normalize: bool = False) -> NDArray[np.floating]:
    """Returns the context as float32 (float16 stays), or says what is wrong with it.

    Args:
        context: Anything that NumPy takes, shape (5, 768).
        normalize: Scale each row to unit norm instead of refusing other norms. Off by default:
            a norm far from 1 usually means a wrong encoder or a missing step.

    Raises:
        BadShape: Not (5, 768), or not numbers.
        NotFinite: NaN or infinity.
        BadNorm: A row's norm is outside 1 +- 1e-3; a zero row also with `normalize`.
    """
    try:
        array = np.asarray(context)
        if array.dtype not in (np.float16, np.float32):
            array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise BadShape(f"context is not an array of numbers: {error}") from error
    if array.shape != CONTEXT_SHAPE:
        raise BadShape(f"context has shape {array.shape}; send exactly {CONTEXT_SHAPE}")
    rows: NDArray[np.float32] = array.astype(np.float32, copy=False)
    norms = np.sqrt(np.einsum("kd,kd->k", rows, rows))
    # Written so that NaN, which compares as false, does not pass.
    if (np.abs(norms - 1) <= NORM_TOLERANCE).all():
        return cast("NDArray[np.floating]", array)
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
    return cast("NDArray[np.floating]", rows / norms[:, None])


def checked_lane(lane: str, lanes: tuple[str, ...]) -> str:
    """Returns the lane.

    Raises:
        UnknownLane: It is not one of `lanes`.
    """
    if lane not in lanes:
        raise UnknownLane(f"lane {lane!r} is not known; use one of {', '.join(lanes)}")
    return lane


def checked_vector(vector: Any) -> NDArray[np.float32]:
    """Returns one (768,) unit-norm vector as float32.

    Raises:
        BadShape, NotFinite, BadNorm: As `checked_context`.
    """
    try:
        array = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadShape(f"vector is not an array of numbers: {error}") from error
    if array.shape != (DIMENSIONS,):
        raise BadShape(f"vector has shape {array.shape}; send exactly ({DIMENSIONS},)")
    norm = float(np.sqrt(array @ array))
    if not np.isfinite(norm):
        raise NotFinite("vector holds NaN or infinity; check the encoder's output")
    if abs(norm - 1) > NORM_TOLERANCE:
        raise BadNorm(f"vector has norm {norm:.6g}; it must be 1 +- {NORM_TOLERANCE:g}")
    return array
