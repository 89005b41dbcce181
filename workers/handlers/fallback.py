"""The fallback worker's handler: the same loop with a slower model, for escalated requests.

The answer is the best one by the policy's rule, and not simply the last:

- `last`: this model's answer.
- `blend`: normalise((1 - w) AMN + w this one), the weight w by calibration (`amn/gate/gain.py`); at weight
  0 it is AMN's answer. Where the calibration was fitted for other models, as `last`.

A chain with a secondary tier goes on when this model could not answer, or when the two answers agree
less than the policy wants. The secondary tier has no calibrated weight: its own answer stands for the
tiers before it when they failed, and is otherwise averaged with the best answer so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate.gain import Calibration, blend, features
from amn.policy import ACCURACY, BLEND, SECONDARY, EscalationPolicy, load_policy
from producer.messages import NORM_TOLERANCE, Answer, BatchReply, Reply, Timings
from producer.protocol import wire
from workers.engine.entry import Outcome
from workers.engine.microbatch import MicroBatch
from workers.engine.outcomes import answered, dead, degraded, fast_answer

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


class Made(NamedTuple):
    """What was computed for a batch of B rows.

    Attributes:
        rows, best: Shape (B, 768): this model's vectors, and the final ones.
        weight: Shape (B,): this model's weight in the final ones.
        expected: Shape (B, 2): expected cosines of AMN and of this model.
        sound: Shape (B,): whether this model's vector has unit norm.
        took: The fields of `Timings` that all share.
    """

    rows: NDArray[np.float32]
    best: NDArray[np.float32]
    weight: NDArray[np.floating]
    expected: NDArray[np.floating]
    sound: NDArray[np.bool_]
    took: dict[str, Any]


class FallbackHandler:
    """Answers escalated requests; each entry carries the best answer so far as `answer`."""

    def __init__(self, predictor: Predictor, tier: Tier | None = None) -> None:
        self._predictor = predictor
        self._tier = tier or Tier()

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        """One model call for the batch; one outcome per request, in order."""
        started_s = time.perf_counter()
        try:
            rows = self._predictor.predict(batch.contexts)  # (B, 768)
        except Exception:
            failed = len(batch) == 1  # the loop halves a batch until one is to blame
            self._tier.tally.failed += batch.requests[0].count if failed else 0
            raise
        fast = [_so_far(batch, i) for i in range(len(batch))]
        best, weight, expected = self._best(batch, fast, rows)
        made = Made(
            rows=rows,
            best=best,
            weight=weight,
            expected=expected,
            sound=np.abs(np.sqrt(np.vecdot(rows, rows)) - 1) <= NORM_TOLERANCE,
            took={
                "batch_ms": (started_s - batch.leased_at_s) * 1000,
                "compute_ms": (time.perf_counter() - started_s) * 1000,
                "batch_size": len(rows),
            },
        )
        return [self._outcome(batch, i, fast[i], made) for i in range(len(batch))]

    def _outcome(self, batch: MicroBatch, i: int, so_far: Answer | None, made: Made) -> Outcome:
        """How request i ends."""
        entry, request, rows = batch.entries[i], batch.requests[i], batch.rows(i)
        if so_far is None:
            return dead(entry, request, "undecodable", "escalated without its AMN answer")
        if not made.sound[rows].all():
            self._tier.tally.failed += request.count
            return self._onward(batch, i, so_far) or degraded(entry, request.reply_to, so_far, FAILED)
        reply: Answer
        if isinstance(so_far, Reply):
            b = rows.start
            reply = self._reply(so_far, made.best[b], float(made.weight[b]), made.expected[b].tolist())
            agree = float(made.rows[b] @ so_far.vector)
        else:
            # One row of many that disagrees is no reason to ask the costliest model about all.
            reply, agree = self._batch_reply(so_far, rows, made), 1.0
        timings = Timings(queue_ms=request.waited_ms(batch.leased_at_ms), **made.took)
        reply = replace(reply, provisional=False, timings=timings)
        onward = self._onward(batch, i, reply) if agree < self._tier.policy.chain.agreement_min else None
        return onward or answered(entry, request.reply_to, reply)

    def _best(
        self, batch: MicroBatch, fast: list[Answer | None], rows: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.floating], NDArray[np.floating]]:
        """Final vectors (B, 768), this model's weight in them (B,), expected cosines (B, 2)."""
        count = len(rows)
        so_far = np.concatenate(
            [rows[batch.rows(i)] if reply is None else vectors_of(reply) for i, reply in enumerate(fast)]
        )
        weight: NDArray[np.floating] = np.ones(count)
        expected = np.zeros((count, 2))
        calibration = self._tier.calibration
        counts = [request.count for request in batch.requests]
        if self._tier.name == SECONDARY:
            halves = [0.5 if reply is not None and len(reply.tiers) > 1 else 1.0 for reply in fast]
            weight = np.repeat(halves, counts)
        elif calibration is not None:
            looked_at = features(batch.contexts, so_far)
            expected = np.stack([model.predict(looked_at) for model in calibration.expected], axis=1)
            fits = np.repeat([self._fits(calibration, reply) for reply in fast], counts)
            weight = np.where(fits, calibration.weight(looked_at), 1.0)
        return blend(so_far, rows, weight), weight, expected

    def _fits(self, calibration: Calibration, reply: Answer | None) -> bool:
        if self._tier.policy.answer.rule != BLEND or reply is None:
            return False
        return calibration.fits(reply.model, self._predictor.model_id)

    def _batch_reply(self, so_far: BatchReply, rows: slice, made: Made) -> BatchReply:
        """As `_reply`, of all rows of a batch."""
        tally, name = self._tier.tally, self._predictor.model_id
        weight, expected = made.weight[rows], made.expected[rows]
        tally.ok += len(weight)
        tally.gain += float(so_far.gains.sum())
        tally.blended += int(np.count_nonzero((weight > 0) & (weight < 1)))
        tally.kept += int(np.count_nonzero(weight == 0))
        earlier = so_far.tiers or {so_far.model: _pairs(expected[:, 0], np.ones(len(weight)))}
        tiers = {
            model: _pairs(pairs[:, 0], pairs[:, 1] * (1 - weight)) for model, pairs in earlier.items()
        } | {name: _pairs(expected[:, 1], weight)}
        if not weight.any():
            return replace(so_far, tiers=tiers)
        vectors, served_by = made.best[rows], self._predictor.name
        return replace(so_far, vectors=vectors, served_by=served_by, model=name, tiers=tiers)

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

    def _onward(self, batch: MicroBatch, b: int, best: Answer) -> Outcome | None:
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


def _so_far(batch: MicroBatch, i: int) -> Answer | None:
    """The best answer that request i carries, if it has as many vectors as the request has contexts."""
    reply, request = fast_answer(batch.entries[i]), batch.requests[i]
    if isinstance(reply, BatchReply):
        return reply if request.batched and len(reply) == request.count else None
    return None if request.batched else reply


def vectors_of(reply: Answer) -> NDArray[np.float32]:
    """(n, 768); n is 1 of an answer to a single request."""
    return reply.vectors if isinstance(reply, BatchReply) else reply.vector[None]


def _pairs(expected: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.stack([expected, weight], axis=1, dtype=np.float32)
