"""The fallback worker's handler: the same loop with a slower model, for escalated requests.

The answer is the best one by the policy's rule, and not simply the last:

- `last`: this model's answer.
- `blend`: normalise((1 - w) AMN + w this one), the weight w by calibration (`amn/gain.py`); at weight
  0 it is AMN's answer. Where the calibration was fitted for other models, as `last`.

A chain with a secondary tier goes on when this model could not answer, or when the two answers agree
less than the policy wants. The secondary tier has no calibrated weight: its own answer stands for the
tiers before it when they failed, and is otherwise averaged with the best answer so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amn.gain import Calibration, blend, features
from amn.policy import ACCURACY, BLEND, SECONDARY, EscalationPolicy, load_policy
from producer import wire
from producer.messages import NORM_TOLERANCE, Reply, Timings
from workers.batch import Batch
from workers.outcomes import answered, dead, degraded, fast_answer
from workers.queue import Outcome

if TYPE_CHECKING:  # the model's libraries are loaded by whoever builds the predictor
    from amn.predictor import Predictor

FAILED = "fallback_failed"


class Tally:
    """What a tier did since its start, for the breaker and the statistics; written by one thread.

    Attributes:
        ok, failed: Answers, and requests that it could not answer.
        blended, kept: Of the answers, those mixed with AMN's, and those where AMN's stayed.
        gain: Sum of the predicted gains of all answers, in cosine.
    """

    __slots__ = ("blended", "failed", "gain", "kept", "ok")

    def __init__(self) -> None:
        self.ok = self.failed = self.blended = self.kept = 0
        self.gain = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier of the chain.

    Attributes:
        name: `accuracy` or `secondary`.
        policy: Its answer rule and its chain.
        calibration: The blend's weights; None without.
        next_is_up: Whether the next tier can be asked.
        tally: What it did.
    """

    name: str = ACCURACY
    policy: EscalationPolicy = field(default_factory=lambda: load_policy("card"))
    calibration: Calibration | None = None
    next_is_up: Callable[[], bool] = lambda: False
    tally: Tally = field(default_factory=Tally)


class FallbackHandler:
    """Answers escalated requests; each entry carries the best answer so far as `answer`."""

    def __init__(self, predictor: Predictor, tier: Tier | None = None) -> None:
        self._predictor = predictor
        self._tier = tier or Tier()

    def handle(self, batch: Batch) -> list[Outcome]:
        """One model call for the batch; one outcome per request, in order."""
        started_s = time.perf_counter()
        try:
            rows = self._predictor.predict(batch.contexts)  # (B, 768)
        except Exception:
            self._tier.tally.failed += len(batch) == 1  # the loop halves a batch until one is to blame
            raise
        fast = [fast_answer(entry) for entry in batch.entries]
        best, weight, expected = self._best(batch.contexts, fast, rows)
        compute_ms = (time.perf_counter() - started_s) * 1000
        sound = np.abs(np.sqrt(np.vecdot(rows, rows)) - 1) <= NORM_TOLERANCE
        outcomes = []
        for b, request in enumerate(batch.requests):
            entry, so_far = batch.entries[b], fast[b]
            if so_far is None:
                outcomes.append(dead(entry, request, "undecodable", "escalated without its AMN answer"))
                continue
            if not sound[b]:
                self._tier.tally.failed += 1
                outcomes.append(
                    self._onward(batch, b, so_far) or degraded(entry, request.reply_to, so_far, FAILED)
                )
                continue
            timings = Timings(
                queue_ms=batch.leased_at_ms - request.submitted_at_ms,
                batch_ms=(started_s - batch.leased_at_s) * 1000,
                compute_ms=compute_ms,
                batch_size=len(batch),
            )
            reply = self._reply(so_far, best[b], float(weight[b]), expected[b].tolist())
            reply = replace(reply, provisional=False, timings=timings)
            agree = float(rows[b] @ so_far.vector)
            onward = self._onward(batch, b, reply) if agree < self._tier.policy.chain.agreement_min else None
            outcomes.append(onward or answered(entry, request.reply_to, reply))
        return outcomes

    def _best(
        self, contexts: NDArray[np.float32], fast: list[Reply | None], rows: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.floating], NDArray[np.floating]]:
        """Final vectors (B, 768), this model's weight in them (B,), expected cosines (B, 2)."""
        count = len(rows)
        so_far = np.stack([rows[b] if reply is None else reply.vector for b, reply in enumerate(fast)])
        weight: NDArray[np.floating] = np.ones(count)
        expected = np.zeros((count, 2))
        calibration = self._tier.calibration
        if self._tier.name == SECONDARY:
            weight = np.array([0.5 if reply is not None and len(reply.tiers) > 1 else 1.0 for reply in fast])
        elif calibration is not None:
            looked_at = features(contexts, so_far)
            expected = np.stack([model.predict(looked_at) for model in calibration.expected], axis=1)
            weight = self._calibrated(calibration, fast, calibration.weight(looked_at))
        return blend(so_far, rows, weight), weight, expected

    def _calibrated(
        self, calibration: Calibration, fast: list[Reply | None], weight: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        if self._tier.policy.answer.rule != BLEND:
            return np.ones(len(weight))
        fits = [r is not None and calibration.fits(r.model, self._predictor.model_id) for r in fast]
        return np.where(fits, weight, 1.0)

    def _reply(
        self, so_far: Reply, vector: NDArray[np.float32], weight: float, expected: list[float]
    ) -> Reply:
        """The answer with every tier's score and weight; served by AMN when this one has none."""
        tally, name = self._tier.tally, self._predictor.model_id
        tally.ok += 1
        tally.gain += so_far.gain
        tally.blended += 0 < weight < 1
        tally.kept += weight == 0
        earlier = so_far.tiers or {so_far.model: (expected[0], 1.0)}
        tiers = {model: (score, share * (1 - weight)) for model, (score, share) in earlier.items()}
        tiers[name] = (expected[1], weight)
        if not weight:
            return replace(so_far, tiers=tiers)
        return replace(so_far, vector=vector, served_by=self._predictor.name, model=name, tiers=tiers)

    def _onward(self, batch: Batch, b: int, best: Reply) -> Outcome | None:
        """The entry on its way to the next tier with the best answer so far; None without one."""
        tiers = self._tier.policy.chain.tiers
        if self._tier.name != ACCURACY or SECONDARY not in tiers or not self._tier.next_is_up():
            return None
        return Outcome(
            entry=batch.entries[b],
            op="escalate",
            reply_to=batch.requests[b].reply_to,
            payload=wire.encode_reply(replace(best, provisional=True)),
            counters="escalated:secondary",
        )
