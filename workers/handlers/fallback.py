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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate.gain import Calibration, blend, features
from amn.policy import ACCURACY, BLEND, SECONDARY, EscalationPolicy, load_policy
from amn.predictor import Predictor
from producer.messages import NORM_TOLERANCE, UNFIT, Answer, BatchReply, Reply, Request, Timings
from producer.protocol import wire
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch
from workers.engine.outcomes import answered, dead, degraded, fast_answer
from workers.gate.tiers import Tally

FAILED = "fallback_failed"


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


class BlendedBatch(NamedTuple):
    """Results of the model and the blend for a micro-batch of B rows.

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
        """One model call for all; one outcome per request, in order."""
        batch.started_s, requests = time.perf_counter(), batch.requests
        try:
            rows = self._predictor.forward(batch.contexts)  # (B, 768)
        except Exception:
            if len(requests) == 1:  # the loop halves them until one is to blame
                self._tier.tally.failed += requests[0].count
            raise
        batch.predicted_s = time.perf_counter()
        so_far = [_so_far(entry, request) for entry, request in zip(batch.entries, requests, strict=True)]
        fast = [
            rows[batch.rows(i)]
            if reply is None
            else reply.vectors
            if isinstance(reply, BatchReply)
            else reply.vector[None]
            for i, reply in enumerate(so_far)
        ]
        weight, expected = self._weighed(batch.contexts, fast, so_far)
        took = {
            "batch_ms": (batch.started_s - batch.leased_at_s) * 1000,
            "compute_ms": (time.perf_counter() - batch.started_s) * 1000,
            "batch_size": len(rows),
        }
        best, sound = blend(np.concatenate(fast), rows, weight), np.abs(np.sqrt(np.vecdot(rows, rows)) - 1)
        computed = BlendedBatch(rows, best, weight, expected, sound <= NORM_TOLERANCE, took)
        return [self._outcome(batch, i, answer, computed) for i, answer in enumerate(so_far)]

    def _outcome(self, batch: MicroBatch, i: int, so_far: Answer | None, computed: BlendedBatch) -> Outcome:
        """The end of request i: answered, or on its way to the next tier with the best answer so far."""
        entry, request, rows, tier = batch.entries[i], batch.requests[i], batch.rows(i), self._tier
        if so_far is None:
            return dead(entry, request, "undecodable", "escalated without its AMN answer")
        best, sound = so_far, bool(computed.sound[rows].all())
        if sound:
            timings = Timings(queue_ms=request.waited_ms(batch.leased_at_ms), **computed.took)
            best = self._bettered(so_far, rows, computed, timings)
        else:
            tier.tally.failed += request.count
        # One row of many that disagrees is no reason to ask the costliest model about all.
        agree = float(computed.rows[rows.start] @ so_far.vector) if isinstance(so_far, Reply) else 1.0
        chain = tier.policy.chain
        may_go_on = tier.name == ACCURACY and SECONDARY in chain.tiers and tier.next_is_up()
        if may_go_on and (not sound or agree < chain.agreement_min):
            return Outcome(
                entry=entry,
                op="escalate",
                reply_to=request.reply_to,
                payload=wire.encode_reply(replace(best, provisional=True)),
                counters="escalated:secondary",
            )
        if not sound:
            return degraded(entry, request.reply_to, so_far, FAILED)
        return answered(entry, request.reply_to, best)

    def _weighed(
        self, contexts: NDArray[np.float32], fast: list[NDArray[np.float32]], so_far: list[Answer | None]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """This model's weight in the final vectors (B,), and expected cosines (B, 2)."""
        tier, counts, total = self._tier, [len(vectors) for vectors in fast], len(contexts)
        if tier.name == SECONDARY:
            halves = [0.5 if reply is not None and len(reply.tiers) > 1 else 1.0 for reply in so_far]
            return np.repeat(halves, counts), np.zeros((total, 2))
        calibration, own = tier.calibration, self._predictor.model_id
        if calibration is None:
            return np.ones(total), np.zeros((total, 2))
        looked_at = features(contexts, np.concatenate(fast))
        expected = np.stack([model.predict(looked_at) for model in calibration.expected], axis=1)
        blends = tier.policy.answer.rule == BLEND
        fits = [blends and reply is not None and calibration.fits(reply.model, own) for reply in so_far]
        return np.where(np.repeat(fits, counts), calibration.weight(looked_at), 1.0), expected

    def _bettered(self, so_far: Answer, rows: slice, computed: BlendedBatch, timings: Timings) -> Answer:
        """The answer with every tier's score and weight; served by AMN when this one has none."""
        weight, expected, name = computed.weight[rows], computed.expected[rows], self._predictor.model_id
        tally = self._tier.tally
        tally.ok += len(weight)
        tally.blended += int(np.count_nonzero((weight > 0) & (weight < 1)))
        tally.kept += int(np.count_nonzero(weight == 0))
        changes: dict[str, Any] = {"provisional": False, "timings": timings}
        if isinstance(so_far, Reply):
            tally.gain_millionths += round(1e6 * so_far.gain)
            share, (amn, own) = float(weight[0]), expected[0].tolist()
            earlier = so_far.tiers or {so_far.model: (amn, 1.0)}
            tiers = {model: (score, part * (1 - share)) for model, (score, part) in earlier.items()}
            changes |= {"tiers": tiers | {name: (own, share)}}
            bettered = {"vector": computed.best[rows.start]}
        else:
            tally.gain_millionths += round(1e6 * float(so_far.gains.sum()))
            pairs = so_far.tiers or {so_far.model: _pairs(expected[:, 0], np.ones(len(weight)))}
            shares = {model: _pairs(pair[:, 0], pair[:, 1] * (1 - weight)) for model, pair in pairs.items()}
            changes |= {"tiers": shares | {name: _pairs(expected[:, 1], weight)}}
            changes |= {"calibration": so_far.calibration or self._blended_by(so_far)}
            bettered = {"vectors": computed.best[rows]}
        if weight.any():
            changes |= {"served_by": self._predictor.name, "model": name, **bettered}
        return replace(so_far, **changes)

    def _blended_by(self, so_far: BatchReply) -> str:
        calibration = self._tier.calibration
        if calibration is None or self._tier.policy.answer.rule != BLEND:
            return ""
        fits = calibration.fits(so_far.model, self._predictor.model_id)
        return calibration.calibration_id if fits else UNFIT


def _so_far(entry: Entry, request: Request) -> Answer | None:
    """The best answer that an entry carries, if it has as many vectors as the request has contexts."""
    reply = fast_answer(entry)
    if isinstance(reply, BatchReply):
        return reply if request.batched and len(reply) == request.count else None
    return None if request.context.ndim == 3 else reply


def _pairs(expected: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.stack([expected, weight], axis=1, dtype=np.float32)
