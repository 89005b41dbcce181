"""The AMN worker's handler: predict, score, decide, and say how each request ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from amn.escalation import CONFIDENCE_METHOD, MARGIN_METHOD, Budget, Decision, EscalationPolicy, decide
from producer import wire
from producer.answers import AnswerEncoder
from producer.errors import InferenceFailed
from producer.messages import DIMENSIONS, NORM_TOLERANCE, Reply, Request
from producer.sampling import sample_key, sampled
from workers.batch import Batch
from workers.outcomes import failure
from workers.queue import Entry, Outcome
from workers.settings import WorkerSettings

if TYPE_CHECKING:  # the model's libraries are loaded by whoever builds the predictor
    from amn.predictor import Predictor

#: An escalation that has less time left than this is not sent: 95 % of the fallback's answers take
#: less on a machine that keeps up (`amn run`), and one that comes too late is no answer at all.
FALLBACK_MS_MIN = 100.0


class AmnHandler:
    """Answers batches with the AMN model, and flags what a fallback should answer."""

    def __init__(self, predictor: Predictor, policy: EscalationPolicy, settings: WorkerSettings) -> None:
        if predictor.bank is None:
            raise ValueError("the AMN worker needs a reference bank for its scores")
        self._predictor = predictor
        self._bank = predictor.bank
        self._policy = policy
        self._answers = AnswerEncoder(
            Reply(
                id="",
                vector=np.zeros(DIMENSIONS, np.float32),
                confidence=0.0,
                margin=0.0,
                served_by=predictor.name,
                model=predictor.model_id,
                bank=predictor.bank.bank_id,
                policy=policy.policy_id,
                confidence_method=CONFIDENCE_METHOD,
                margin_method=MARGIN_METHOD,
            )
        )
        self._settings = settings
        self._budget = None if policy.budget is None else Budget(policy.budget, policy.burst)

    def handle(self, batch: Batch) -> list[Outcome]:
        """One model call for the batch; one outcome per request, in order."""
        started_s = time.perf_counter()
        vectors = self._predictor.forward(batch.contexts)  # (B, 768)
        best, second, *_ = self._bank.top2(vectors)  # (B,), (B,)
        compute_ms = (time.perf_counter() - started_s) * 1000
        rows = vectors.numpy()
        sound = (np.abs(np.vecdot(rows, rows) - 1) <= 2 * NORM_TOLERANCE).tolist()  # of squares
        confidences, margins = best.tolist(), (best - second).tolist()
        batch_ms = (started_s - batch.leased_at_s) * 1000
        shared = {"batch_ms": batch_ms, "compute_ms": compute_ms, "batch_size": len(batch)}
        outcomes = []
        for b, request in enumerate(batch.requests):
            entry = batch.entries[b]
            if not sound[b]:
                outcomes.append(failure(entry, request, InferenceFailed("the model gave no unit vector")))
                continue
            decision = self._decide(request, confidences[b], margins[b], batch.leased_at_ms)
            payload = self._answers.encode(
                request.id,
                rows[b],
                (confidences[b], margins[b]),
                (decision.reasons, decision.shed, decision.escalate),
                {"queue_ms": batch.leased_at_ms - request.submitted_at_ms, **shared},
            )
            outcomes.append(self._outcome(entry, request, payload, decision))
        return outcomes

    def _decide(self, request: Request, confidence: float, margin: float, now_ms: float) -> Decision:
        decision = decide(
            self._policy,
            self._budget,
            confidence=confidence,
            margin=margin,
            lane=request.lane,
            tokens=request.tokens,
        )
        if decision.escalate and request.expires_at_ms and request.expires_at_ms - now_ms < FALLBACK_MS_MIN:
            return Decision(False, decision.reasons, "deadline")
        return decision

    def _outcome(self, entry: Entry, request: Request, payload: bytes, decision: Decision) -> Outcome:
        counters = "escalated" if decision.escalate else "answered,answered:amn"
        if decision.reasons:
            counters += "".join(f",reason:{reason}" for reason in decision.reasons)
        if decision.shed:
            counters += f",shed,shed:{decision.shed}"
        outcome = Outcome(
            entry=entry,
            op=("both" if request.provisional else "escalate") if decision.escalate else "reply",
            reply_to=request.reply_to,
            payload=payload,
            counters=counters,
        )
        self._sample(outcome, request)
        return outcome

    def _sample(self, outcome: Outcome, request: Request) -> None:
        """Marks what the shadow stream gets: this request, and the truth it reveals of the last one."""
        settings = self._settings
        if not settings.sample_rate:
            return
        key = sample_key(request.id, request.sequence, request.position)
        if sampled(key, settings.sample_rate, settings.sample_salt):
            outcome.sample_key = key
        if request.sequence and request.position > 0:
            previous = sample_key(request.id, request.sequence, request.position - 1)
            if sampled(previous, settings.sample_rate, settings.sample_salt):
                outcome.truth_key = previous
                outcome.truth = wire.encode_vector(request.context[-1])
