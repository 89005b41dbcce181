"""The AMN worker's handler: predict, score, decide, and say how each request ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amn.escalation import SHED_DOWN, Allowance, Decision, Scores, decide, hard_rules
from amn.escalation_scores import GateScores
from amn.gain import Calibration
from amn.policy import EscalationPolicy
from producer import wire
from producer.answers import AnswerEncoder
from producer.errors import InferenceFailed
from producer.messages import DIMENSIONS, NORM_TOLERANCE, Reply, Request
from workers.batch import Batch
from workers.decisions import DecisionLog
from workers.outcomes import failure
from workers.queue import Entry, Outcome
from workers.settings import WorkerSettings
from workers.shadow_rates import Sampler
from workers.shadow_settings import SLOW_MS

if TYPE_CHECKING:  # the model's libraries are loaded by whoever builds the predictor
    import torch

    from amn.predictor import Predictor

#: An escalation that has less time left than this is not sent: 95 % of the fallback's answers take
#: less on a machine that keeps up (`amn run`), and one that comes too late is no answer at all.
FALLBACK_MS_MIN = 100.0
_UNSCORED = Scores()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What decides who answers.

    Attributes:
        policy: The rules.
        calibration: Needed by policies that look at the gain or blend.
        allowance: What the budget leaves; shared with the thread that settles it.
        log: Where sampled decisions go; None for nowhere.
    """

    policy: EscalationPolicy
    calibration: Calibration | None = None
    allowance: Allowance = field(default_factory=Allowance.unlimited)
    log: DecisionLog | None = None

    @property
    def policy_id(self) -> str:
        """Stamped on every answer."""
        return self.policy.policy_id(self.calibration.calibration_id if self.calibration else "")


class GateScorer:
    """All scores that a policy asks for, of a batch of predictions."""

    def __init__(self, predictor: Predictor, gate: Gate) -> None:
        policy = gate.policy
        self._calibration = gate.calibration if policy.gain is not None else None
        with_bank = policy.needs_bank or bool(self._calibration and self._calibration.with_bank)
        if with_bank and predictor.bank is None:
            raise ValueError(f"policy {policy.name} needs a reference bank for its scores")
        self._bank = GateScores(policy, predictor.bank) if with_bank and predictor.bank else None

    @property
    def banked(self) -> bool:
        """Whether the reference bank is asked."""
        return self._bank is not None

    def __call__(self, contexts: NDArray[np.float32], vectors: torch.Tensor) -> list[Scores]:
        """(B, 5, 768) and (B, 768) -> one `Scores` a row."""
        confidences = margins = gains = [0.0] * len(contexts)
        banked: tuple[NDArray[np.float32], ...] = ()
        if self._bank is not None:
            banked = self._bank(vectors)
            confidences, margins = (scores.tolist() for scores in banked)
        if self._calibration is not None:
            gains = self._calibration.predict(contexts, vectors.numpy(), banked).tolist()
        return list(map(Scores, confidences, margins, gains))


class AmnHandler:
    """Answers batches with the AMN model, and flags what a fallback should answer."""

    def __init__(
        self, predictor: Predictor, gate: Gate, settings: WorkerSettings, sampler: Sampler | None = None
    ) -> None:
        self._predictor = predictor
        self._gate = gate
        self._sampler = sampler or Sampler(settings.sample_rate, settings.sample_salt)
        self._scorer = GateScorer(predictor, gate)
        self._encoders = _encoders(predictor, gate, banked=self._scorer.banked)

    def handle(self, batch: Batch) -> list[Outcome]:
        """One model call for the batch; one outcome per request, in order."""
        started_s = time.perf_counter()
        vectors = self._predictor.forward(batch.contexts)  # (B, 768)
        hard = [hard_rules(self._gate.policy, request.lane, request.tokens) for request in batch.requests]
        scores = self._scores(batch.contexts, vectors, hard)
        compute_ms = (time.perf_counter() - started_s) * 1000
        rows = vectors.numpy()
        sound = (np.abs(np.vecdot(rows, rows) - 1) <= 2 * NORM_TOLERANCE).tolist()  # of squares
        minute = int(batch.leased_at_ms) // 60_000
        batch_ms = (started_s - batch.leased_at_s) * 1000
        shared = {"batch_ms": batch_ms, "compute_ms": compute_ms, "batch_size": len(batch)}
        outcomes = []
        for b, request in enumerate(batch.requests):
            entry = batch.entries[b]
            if not sound[b]:
                outcomes.append(failure(entry, request, InferenceFailed("the model gave no unit vector")))
                continue
            decision = self._decide(request, hard[b], scores[b], batch.leased_at_ms)
            if self._gate.log is not None:
                self._gate.log.note(request, scores[b], decision, rows[b], batch.leased_at_ms)
            queue_ms = batch.leased_at_ms - request.submitted_at_ms
            payload = self._encoders[not hard[b], decision.shed == SHED_DOWN].encode(
                request.id,
                rows[b],
                scores[b],
                (decision.reasons, decision.shed, decision.escalate),
                {"queue_ms": queue_ms, **shared},
            )
            outcome = self._outcome(entry, request, payload, decision)
            if not decision.escalate and queue_ms + batch_ms + compute_ms > SLOW_MS:
                outcome.counters += ",slow"
            outcome.sample_key, outcome.truth_key = self._sampler.marks(request, minute)
            if outcome.truth_key:
                outcome.truth = wire.encode_vector(request.context[-1])
            outcomes.append(outcome)
        return outcomes

    def _scores(
        self, contexts: NDArray[np.float32], vectors: torch.Tensor, hard: list[tuple[str, ...]]
    ) -> Sequence[Scores]:
        """Scores of the rows that no hard rule has decided: the others pay for no gate."""
        if not any(hard):
            return self._scorer(contexts, vectors)
        scores = [_UNSCORED] * len(hard)
        soft = [b for b, reasons in enumerate(hard) if not reasons]
        if soft:
            for b, one in zip(soft, self._scorer(contexts[soft], vectors[soft]), strict=True):
                scores[b] = one
        return scores

    def _decide(self, request: Request, hard: tuple[str, ...], scores: Scores, now_ms: float) -> Decision:
        late = request.expires_at_ms and request.expires_at_ms - now_ms < FALLBACK_MS_MIN
        return decide(self._gate.policy, self._gate.allowance, hard, scores, in_time=not late)

    def _outcome(self, entry: Entry, request: Request, payload: bytes, decision: Decision) -> Outcome:
        return Outcome(
            entry=entry,
            op=("both" if request.provisional else "escalate") if decision.escalate else "reply",
            reply_to=request.reply_to,
            payload=payload,
            counters=counters_of(decision),
        )


def counters_of(decision: Decision) -> str:
    """What is counted of a decision: fired is escalated plus shed, rule by rule."""
    counters = "escalated" if decision.escalate else "answered,answered:amn"
    if not decision.reasons:
        return counters
    counters += ",flagged" + "".join(f",reason:{reason}" for reason in decision.reasons)
    if decision.beyond:
        counters += ",beyond_budget"
    if decision.shed:
        counters += f",shed,shed:{decision.shed}"
    if decision.shed == SHED_DOWN:
        counters += f",degraded,degraded:{SHED_DOWN}"
    return counters


def _encoders(predictor: Predictor, gate: Gate, *, banked: bool) -> dict[tuple[bool, bool], AnswerEncoder]:
    """By "was scored" and "the fallback is down": what the answers of each kind share."""
    policy = gate.policy
    made = {}
    for scored in (False, True):
        looked = scored and banked and predictor.bank is not None
        for down in (False, True):
            shared = Reply(
                id="",
                vector=np.zeros(DIMENSIONS, np.float32),
                confidence=0.0,
                margin=0.0,
                served_by=predictor.name,
                degraded=SHED_DOWN if down else "",
                model=predictor.model_id,
                bank=predictor.bank.bank_id if looked and predictor.bank else "",
                policy=gate.policy_id,
                confidence_method=policy.confidence_method if looked else "none",
                margin_method=policy.margin_method if looked else "none",
            )
            made[scored, down] = AnswerEncoder(shared, with_gain=scored and policy.gain is not None)
    return made
