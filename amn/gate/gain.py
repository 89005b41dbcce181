"""The worth of a fallback: a calibrated score of a request, and the weight of a fallback's answer.

`amn calibrate` fits both on held-out articles and writes one hashed JSON file of plain
arrays; a worker evaluates it with NumPy. The features are a few dot products of the prediction and
its context, so a score costs no search in the bank (docs/escalation.md tells what ranked how well).

novelty              share of the prediction's energy outside the span of its context: what the model
                     adds beyond a mixture of the five vectors; near 0 where the text is unfamiliar
to_mean, to_last     cosine of the prediction to the context mean, and to the newest vector
coherence            mean cosine of neighbours in the context
length               length of the context mean: 1 when all five agree
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.errors import CheckpointError
from amn.kernel import bindings as kernel
from amn.manifest import content_sha256, read_manifest, write_manifest

FORMAT = 1
FEATURES = ("novelty", "to_mean", "to_last", "coherence", "length")
#: Keeps the system of five nearly equal context vectors solvable; unit vectors make it relative.
_RIDGE = 1e-3 * np.eye(5, dtype=np.float32)
#: This number stands in amn/kernel/kernel.c.
_LEAST = 1e-6

Values = NDArray[np.float64]
Vectors = NDArray[np.float32]


def features(contexts: NDArray[np.float32], predictions: NDArray[np.float32]) -> Values:
    """(B, 5, 768) contexts and (B, 768) unit predictions -> (B, 5) in the order of `FEATURES`."""
    if kernel.READY:
        return kernel.features(contexts, predictions)
    contexts, predictions = np.asarray(contexts, np.float32), np.asarray(predictions, np.float32)
    gram = np.vecdot(contexts[:, :, None], contexts[:, None])  # (B, 5, 5)
    along = np.vecdot(contexts, predictions[:, None])  # (B, 5)
    solved = np.linalg.solve(gram + _RIDGE, along[..., None])[..., 0]
    total = np.sqrt(np.maximum(gram.sum(axis=(1, 2)), 0))  # five vectors may cancel
    made = np.empty((len(gram), len(FEATURES)))
    made[:, 0] = 1 - np.vecdot(solved, along)
    made[:, 1] = along.sum(axis=1) / np.maximum(total, _LEAST)
    made[:, 2] = along[:, 4]
    made[:, 3] = np.trace(gram, 1, 1, 2) / 4  # the four cosines of neighbours
    made[:, 4] = total / 5
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear model of the features; without coefficients a constant."""

    coefficients: Values
    intercept: float

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Linear:
        """The model of its stored numbers."""
        return cls(coefficients=np.array(stored["coefficients"]), intercept=stored["intercept"])

    def predict(self, rows: Values) -> Values:
        """(B, 5) -> (B,)."""
        made: Values = rows[:, : len(self.coefficients)] @ self.coefficients + self.intercept
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The fitted score and blend.

    Attributes:
        calibration_id: `gain@` and the first 12 hex digits of the content's hash.
        amn, fallback: Ids of the two models it was fitted for.
        model: The gain of escalating, where the fallback has a weight at all.
        expected: Expected cosine with the true next vector, of AMN and of the fallback.
        weight_edges, weights: The fallback's weight in the final answer by novelty: `weights[i]`
            from `weight_edges[i]` on; 0 below the first edge.
    """

    calibration_id: str
    amn: str
    fallback: str
    model: Linear
    expected: tuple[Linear, Linear]
    weight_edges: Values
    weights: Values
    _steps: Values = field(init=False)

    def __post_init__(self) -> None:
        if len(self.model.coefficients) > len(FEATURES) or len(self.weights) != len(self.weight_edges):
            raise CheckpointError(
                f"calibration {self.calibration_id} has {len(self.weights)} weights for "
                f"{len(self.weight_edges)} edges, or over {len(FEATURES)} coefficients: fit it again"
            )
        object.__setattr__(self, "_steps", np.append(0.0, self.weights))  # from below the first edge on

    def fits(self, amn: str, fallback: str) -> bool:
        """True if it was fitted for these two models."""
        return (self.amn, self.fallback) == (amn, fallback)

    def gain(self, rows: Values) -> Values:
        """Features (B, 5) -> predicted gain of escalating, (B,): expected cosine of the final answer
        minus AMN's. 0 where the fallback has no weight: asking it would not change the answer."""
        known, model = self._steps[np.searchsorted(self.weight_edges, rows[:, 0], side="right")], self.model
        worth = rows[:, : len(model.coefficients)] @ model.coefficients + model.intercept
        return np.where(known > 0, worth, 0.0)

    def scorer(self) -> Callable[[Vectors, Vectors], Values]:
        """Returns a function of contexts (B, 5, 768) and predictions (B, 768): the gain of their features."""
        if not kernel.READY:
            return lambda contexts, predictions: self.gain(features(contexts, predictions))
        terms, intercept, edges = self.model.coefficients, self.model.intercept, self.weight_edges
        counts = len(terms), len(edges)
        return kernel.gain(*counts, intercept, coefficients=terms, edges=edges, weights=self._steps)

    def weight(self, rows: Values) -> Values:
        """Features (B, 5) -> weight of the fallback's answer, (B,) in 0..1."""
        found: Values = self._steps[np.searchsorted(self.weight_edges, rows[:, 0], side="right")]
        return found


def blend(
    fast: NDArray[np.float32], slow: NDArray[np.float32], weight: NDArray[np.floating]
) -> NDArray[np.float32]:
    """normalise((1 - w) fast + w slow): (B, 768) unit vectors, weights (B,). Weight 0 is `fast`."""
    w = weight.astype(np.float32)[:, None]
    mixed = fast + w * (slow - fast)
    mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
    return np.asarray(np.where(w > 0, mixed, fast), dtype=np.float32)


def load_calibration(folder: Path) -> Calibration:
    """Loads a calibration and checks its hash.

    Raises:
        CheckpointError: It is missing, altered or of another format.
    """
    remedy = "run `amn calibrate`, or use a policy without [gain] and blend, such as card"
    stored = read_manifest(folder, dict[str, Any], artifact="calibration", remedy=remedy)
    content, sha256 = stored.get("content") or {}, stored.get("sha256", "")
    known = content_sha256(content) == sha256 and content.get("format") == FORMAT
    if not known or content.get("with_bank") or content["model"]["kind"] != "linear":
        raise CheckpointError(
            f"calibration {folder} is of another format, or was changed after it was fitted; fit it again"
        )
    return Calibration(
        calibration_id=f"gain@{sha256[:12]}",
        amn=content["amn"],
        fallback=content["fallback"],
        model=Linear.of(content["model"]),
        expected=(Linear.of(content["expected"][0]), Linear.of(content["expected"][1])),
        weight_edges=np.array(content["weight_edges"], dtype=np.float64),
        weights=np.array(content["weights"], dtype=np.float64),
    )


def save_calibration(content: Mapping[str, Any], folder: Path) -> None:
    """Writes a calibration with its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, {"sha256": content_sha256(content), "content": content}, indent=1)
