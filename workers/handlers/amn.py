"""The AMN worker's handler: predict, score, decide, and say how each request ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate.escalation import SHED_DOWN, Allowance, Decision, Scores, decide, hard_rules
from amn.gate.gain import Calibration
from amn.gate.scores import GateScores
from amn.policy import EscalationPolicy
from producer.errors import InferenceFailed
from producer.messages import DIMENSIONS, NORM_TOLERANCE, Reply, Request, Timings
from producer.protocol import wire
from producer.protocol.answers import AnswerEncoder
from workers.engine.batch import Batch
from workers.engine.entry import Entry, Outcome
from workers.engine.outcomes import BULK_ESCALATED, EXTRA_ESCALATED, failure, is_bulk
from workers.handlers.decisions import DecisionLog
from workers.handlers.message_batches import Columns, batch_reply, decide_batch
from workers.settings import WorkerSettings
from workers.shadow.sampler import Sampler
from workers.shadow.settings import SLOW_BULK_MS, SLOW_MS

if TYPE_CHECKING:  # the model's libraries are loaded by whoever builds the predictor
    from amn.predictor import Predictor

#: An escalation that has less time left than this is not sent: 95 % of the fallback's answers take
#: less on a machine that keeps up (`amn run`), and one that comes too late is no answer at all.
FALLBACK_MS_MIN = 100.0
#: Of the square of a norm.
_SQUARE_TOLERANCE = 2 * NORM_TOLERANCE
#: Each further context of a batch takes a fallback about so much longer, on one core.
FALLBACK_ROW_MS = 1.0
#: What is counted of an answer's time, by "is bulk" and "was slow".
_TIMED = {
    (False, False): ",timed",
    (False, True): ",timed,slow",
    (True, False): ",timed:bulk",
    (True, True): ",timed:bulk,slow:bulk",
}

#: What is counted of a bulk request, by "is escalated".
_BULK = (",bulk", f",bulk,{BULK_ESCALATED}")


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
        if policy.needs_bank and predictor.bank is None:
            raise ValueError(f"policy {policy.name} needs a reference bank for its scores")
        self._bank = GateScores(policy, predictor.bank) if policy.needs_bank and predictor.bank else None

    @property
    def banked(self) -> bool:
        """Whether the reference bank is asked."""
        return self._bank is not None

    def __call__(self, contexts: NDArray[np.float32], vectors: NDArray[np.float32]) -> list[Scores]:
        """(B, 5, 768) and (B, 768) -> one `Scores` a row."""
        return self.columns(contexts, vectors).rows()

    def columns(self, contexts: NDArray[np.float32], vectors: NDArray[np.float32]) -> Columns:
        """The same as arrays (B,)."""
        confidences, margins, gains = Columns.zeros(len(contexts))
        if self._bank is not None:
            confidences, margins = self._bank(vectors)
        if self._calibration is not None:
            gains = self._calibration.predict(contexts, vectors)
        return Columns(confidences, margins, gains)


class Made(NamedTuple):
    """What was computed for a batch of B rows.

    Attributes:
        vectors: Shape (B, 768).
        hard: The hard rules that fired, by request.
        columns: Scores by row.
        scores: The same as objects; empty when no single request is among them.
        sound: By row: whether the vector has unit norm.
        took: The fields of `Timings` that all share.
    """

    vectors: NDArray[np.float32]
    hard: list[tuple[str, ...]]
    columns: Columns
    scores: list[Scores]
    sound: list[bool]
    took: dict[str, Any]


class AmnHandler:
    """Answers batches with the AMN model, and flags what a fallback should answer."""

    def __init__(
        self, predictor: Predictor, gate: Gate, settings: WorkerSettings, sampler: Sampler | None = None
    ) -> None:
        self._predictor = predictor
        self._gate = gate
        self._sampler = sampler or Sampler(settings.sample_rate, settings.sample_salt)
        self._scorer = GateScorer(predictor, gate)
        self._shared = _shared(predictor, gate, banked=self._scorer.banked)
        with_gain = gate.policy.gain is not None
        self._encoders = {
            kind: AnswerEncoder(shared, with_gain=kind[0] and with_gain)
            for kind, shared in self._shared.items()
        }

    def handle(self, batch: Batch) -> list[Outcome]:
        """One model call for the batch; one outcome per request, in order."""
        started_s = time.perf_counter()
        vectors = self._predictor.forward(batch.contexts)  # (B, 768)
        hard = [hard_rules(self._gate.policy, request.lane, request.tokens) for request in batch.requests]
        columns = self._scores(batch, vectors, hard)
        compute_ms = (time.perf_counter() - started_s) * 1000
        # A list of a few numbers is read faster than an array.
        sound = [abs(square - 1) <= _SQUARE_TOLERANCE for square in np.vecdot(vectors, vectors).tolist()]
        batch_ms = (started_s - batch.leased_at_s) * 1000
        took = {"batch_ms": batch_ms, "compute_ms": compute_ms, "batch_size": len(vectors)}
        if not batch.starts:
            made = Made(vectors, hard, columns, columns.rows(), sound, took)
            return [self._single(batch, i, i, made) for i in range(len(batch))]
        lone = not all(request.batched for request in batch.requests)
        made = Made(vectors, hard, columns, columns.rows() if lone else [], sound, took)
        return [
            self._batched(batch, i, made)
            if request.batched
            else self._single(batch, i, batch.starts[i], made)
            for i, request in enumerate(batch.requests)
        ]

    def _single(self, batch: Batch, i: int, row: int, made: Made) -> Outcome:
        """How request i ends, whose context is in this row."""
        request, entry, hard, took = batch.requests[i], batch.entries[i], made.hard[i], made.took
        if not made.sound[row]:
            return failure(entry, request, InferenceFailed("the model gave no unit vector"))
        vector, scores = made.vectors[row], made.scores[row]
        in_time = self._in_time(request, batch.leased_at_ms)
        decision = decide(self._gate.policy, self._gate.allowance, hard, scores, in_time=in_time)
        if self._gate.log is not None:
            self._gate.log.note(request, scores, decision, vector, batch.leased_at_ms)
        queue_ms = request.waited_ms(batch.leased_at_ms)
        payload = self._encoders[not hard, decision.shed == SHED_DOWN].encode(
            request.id,
            vector,
            scores,
            (decision.reasons, decision.shed, decision.escalate),
            {"queue_ms": queue_ms, **took},
        )
        outcome = _outcome(entry, request, payload, decision)
        bulk = is_bulk(entry, request)
        if not decision.escalate and request.submitted_at_ms:
            took_ms = queue_ms + took["batch_ms"] + took["compute_ms"]
            outcome.counters += _TIMED[bulk, took_ms > (SLOW_BULK_MS if bulk else SLOW_MS)]
        # The truth of bulk work without a place would never come, and would seem to be missing.
        if not self._sampler.on or (bulk and (not request.sequence or request.position < 0)):
            return outcome
        outcome.counters += ",sampleable"
        outcome.sample_key, outcome.truth_key = self._sampler.marks(
            request, int(batch.leased_at_ms) // 60_000
        )
        if outcome.truth_key:
            outcome.truth = wire.encode_vector(request.context[-1])
        return outcome

    def _batched(self, batch: Batch, i: int, made: Made) -> Outcome:
        """How request i ends, a batch: never sampled, logged or counted as slow."""
        request, entry, hard, rows = batch.requests[i], batch.entries[i], made.hard[i], batch.rows(i)
        if not all(made.sound[rows]):
            where = made.sound.index(False, rows.start) - rows.start
            return failure(
                entry, request, InferenceFailed(f"contexts[{where}]: the model gave no unit vector")
            )
        columns, in_time = made.columns.part(rows), self._in_time(request, batch.leased_at_ms)
        verdicts = decide_batch(self._gate.policy, self._gate.allowance, hard, columns, in_time=in_time)
        decision = verdicts.decision
        shared = self._shared[not hard, decision.shed == SHED_DOWN]
        timings = Timings(queue_ms=request.waited_ms(batch.leased_at_ms), **made.took)
        reply = batch_reply(request.id, shared, made.vectors[rows], columns, verdicts, timings)
        outcome = _outcome(entry, request, wire.encode_reply(reply), decision)
        outcome.counters += "," + verdicts.counters()
        extra = len(columns.gain) - 1
        if extra and not is_bulk(entry, request):  # the budget counts contexts, and so does its objective
            outcome.counters += f",batch:extra={extra}"
            if decision.escalate:
                outcome.counters += f",{EXTRA_ESCALATED}={extra}"
        return outcome

    def _scores(self, batch: Batch, vectors: NDArray[np.float32], hard: list[tuple[str, ...]]) -> Columns:
        """Scores of the rows that no hard rule has decided: the others pay for no gate."""
        contexts = batch.contexts
        if not any(hard):
            return self._scorer.columns(contexts, vectors)
        columns = Columns.zeros(len(vectors))
        soft = np.ones(len(vectors), np.bool_)
        for i, reasons in enumerate(hard):
            if reasons:
                soft[batch.rows(i)] = False
        if soft.any():
            for column, found in zip(
                columns, self._scorer.columns(contexts[soft], vectors[soft]), strict=True
            ):
                column[soft] = found
        return columns

    def _in_time(self, request: Request, now_ms: float) -> bool:
        left_ms = request.expires_at_ms - now_ms
        return not request.expires_at_ms or left_ms >= FALLBACK_MS_MIN + FALLBACK_ROW_MS * (request.count - 1)


def _outcome(entry: Entry, request: Request, payload: bytes, decision: Decision) -> Outcome:
    return Outcome(
        entry=entry,
        op=("both" if request.provisional else "escalate") if decision.escalate else "reply",
        reply_to=request.reply_to,
        payload=payload,
        counters=counters_of(decision) + (_BULK[decision.escalate] if is_bulk(entry, request) else ""),
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


def _shared(predictor: Predictor, gate: Gate, *, banked: bool) -> dict[tuple[bool, bool], Reply]:
    """By "was scored" and "the fallback is down": what the answers of each kind share."""
    policy = gate.policy
    made = {}
    for scored in (False, True):
        looked = scored and banked and predictor.bank is not None
        for down in (False, True):
            made[scored, down] = Reply(
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
    return made
