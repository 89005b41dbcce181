"""The AMN worker's handler: predict, score, decide, and say how each request ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate.escalation import SHED_DOWN, Allowance, Decision, Scores, decide, hard_rules
from amn.gate.gain import Calibration
from amn.gate.scores import Columns, GateScores
from amn.policy import EscalationPolicy
from amn.predictor import Predictor
from producer.errors import InferenceFailed
from producer.messages import BULK_PRIORITY, DIMENSIONS, NORM_TOLERANCE, Reply, Timings
from producer.protocol import wire
from producer.protocol.replies import AnswerEncoder
from producer.sampling import ONE_IN_MAX
from workers.engine.entry import BULK_PLACE, Outcome
from workers.engine.microbatch import MicroBatch
from workers.engine.outcomes import BULK_ESCALATED, EXTRA_ESCALATED, failure, is_bulk
from workers.engine.yielding import piecewise
from workers.handlers.batches import batch_reply, decide_batch
from workers.handlers.decisions import DecisionLog
from workers.settings import FALLBACK_MS_MIN, WorkerSettings
from workers.shadow.sampler import Sampler
from workers.shadow.settings import SLOW_BULK_MS, SLOW_MS

#: Allowed difference of the square of a norm from 1.
_SQUARE_TOLERANCE = 2 * NORM_TOLERANCE
#: Each further context of a message takes a fallback about so much longer, on one core.
FALLBACK_ROW_MS = 1.0
#: Counters of an answer's time, by "is bulk" and "was slow".
_TIMED = {
    (False, False): ",timed",
    (False, True): ",timed,slow",
    (True, False): ",timed:bulk",
    (True, True): ",timed:bulk,slow:bulk",
}
#: `Outcome.op` by "is escalated" and "wants a provisional answer".
_OPS = {(False, False): "reply", (False, True): "reply", (True, False): "escalate", (True, True): "both"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Policy, calibration and budget of one AMN worker.

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


class GatedBatch(NamedTuple):
    """Results of the model and the gate for a micro-batch of B rows.

    Attributes:
        vectors: Shape (B, 768).
        hard: The hard rules that fired, by request.
        columns: Scores by row.
        scores: The scores as objects; empty when no single request is among them.
        sound: By row: whether the vector has unit norm.
        took: The fields of `Timings` that all share.
    """

    vectors: NDArray[np.float32]
    hard: list[tuple[str, ...]]
    columns: Columns
    scores: list[Scores]
    sound: list[bool]
    took: dict[str, Any]


#: The model (contexts -> vectors), and the gate (contexts, vectors, which rows -> columns of scores).
_Functions = tuple[Callable[..., NDArray[np.float32]], Callable[..., Columns]]


class AmnHandler:
    """Answers with the AMN model, and flags what a fallback should answer."""

    def __init__(
        self, predictor: Predictor, gate: Gate, settings: WorkerSettings, sampler: Sampler | None = None
    ) -> None:
        self._predictor = predictor
        self._gate = gate
        self._sampler = sampler or Sampler(settings.sample_rate, settings.sample_salt)
        self._scores = GateScores(gate.policy, predictor.bank, gate.calibration)
        self._whole: _Functions = predictor.forward, self._scores
        with_gain = gate.policy.gain is not None
        #: Shared fields of the answers, by "was scored" and "the fallback is down".
        self._shared = {
            (scored, down): _shared(predictor, gate, scored and self._scores.banked, SHED_DOWN * down)
            for scored in (False, True)
            for down in (False, True)
        }
        self._encoders = {
            kind: AnswerEncoder(shared, with_gain=kind[0] and with_gain)
            for kind, shared in self._shared.items()
        }

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        """One model call for all; one outcome per request, in order."""
        batch.started_s = started_s = time.perf_counter()
        requests, policy = batch.requests, self._gate.policy
        forward, scored = self._whole if batch.between is None else self._by_piece(batch.between)
        vectors = forward(batch.contexts)  # (B, 768)
        batch.predicted_s = time.perf_counter()
        hard = [hard_rules(policy, request.lane, request.tokens, request.escalate) for request in requests]
        soft = None
        if any(hard):  # what a hard rule has decided pays for no gate
            soft = np.ones(len(vectors), np.bool_)
            for i, reasons in enumerate(hard):
                if reasons:
                    soft[batch.rows(i)] = False
        columns = scored(batch.contexts, vectors, soft)
        took = {
            "batch_ms": (started_s - batch.leased_at_s) * 1000,
            "compute_ms": (time.perf_counter() - started_s) * 1000,
            "batch_size": len(vectors),
        }
        # A list of a few numbers is read faster than an array.
        sound = [abs(square - 1) <= _SQUARE_TOLERANCE for square in np.vecdot(vectors, vectors).tolist()]
        batched = [request.context.ndim == 3 for request in requests]
        scores = [] if all(batched) else list(map(Scores, *(column.tolist() for column in columns)))
        computed = GatedBatch(vectors, hard, columns, scores, sound, took)
        return [
            self._batched(batch, i, computed) if many else self._single(batch, i, computed)
            for i, many in enumerate(batched)
        ]

    def _by_piece(self, between: Callable[[], None]) -> _Functions:
        """The model and the gate, for some rows after the others."""
        forward, scored = self._whole
        return piecewise(forward, between), piecewise(scored, between)

    def _single(self, batch: MicroBatch, i: int, computed: GatedBatch) -> Outcome:
        """The end of request i, a single context."""
        request, entry, now_ms, took = batch.requests[i], batch.entries[i], batch.leased_at_ms, computed.took
        row = batch.starts[i] if batch.starts else i
        if not computed.sound[row]:
            return failure(entry, request, InferenceFailed("the model gave no unit vector"))
        gate, hard = self._gate, computed.hard[i]
        vector, scores = computed.vectors[row], computed.scores[row]
        in_time = not request.expires_at_ms or request.expires_at_ms - now_ms >= FALLBACK_MS_MIN
        decision = decide(gate.policy, gate.allowance, hard, scores, in_time=in_time)
        if gate.log is not None:
            gate.log.note(request, scores, decision, vector, now_ms)
        queue_ms = now_ms - request.submitted_at_ms if request.submitted_at_ms else 0.0
        verdict = decision.reasons, decision.shed, decision.escalate
        encoder = self._encoders[not hard, decision.shed == SHED_DOWN]
        timings = {"queue_ms": queue_ms, **took}
        payload = encoder.encode(request.id, vector, scores, verdict, timings, request.traceparent)
        bulk = entry.place == BULK_PLACE or request.priority == BULK_PRIORITY
        counters = counters_of(decision, bulk)
        if not decision.escalate and request.submitted_at_ms:
            took_ms = queue_ms + took["batch_ms"] + took["compute_ms"]
            counters += _TIMED[bulk, took_ms > (SLOW_BULK_MS if bulk else SLOW_MS)]
        op = _OPS[decision.escalate, request.provisional]
        outcome = Outcome(entry=entry, op=op, reply_to=request.reply_to, payload=payload, counters=counters)
        # The truth of bulk work without a position would never come, and would seem to be missing.
        if self._sampler.on and not (bulk and (not request.sequence or request.position < 0)):
            outcome.counters += ",sampleable"
            outcome.sample_key, outcome.truth_key = self._sampler.marks(request)
            if outcome.truth_key:
                outcome.truth = wire.encode_vector(request.context[-1])
        return outcome

    def _batched(self, batch: MicroBatch, i: int, computed: GatedBatch) -> Outcome:
        """The end of request i, a message of n contexts: never logged or counted as slow, and sampled only
        where it is one row of a file."""
        request, entry, rows, gate = batch.requests[i], batch.entries[i], batch.rows(i), self._gate
        hard, extra = computed.hard[i], request.count - 1
        if not all(computed.sound[rows]):
            where = computed.sound.index(False, rows.start) - rows.start
            problem = InferenceFailed(f"contexts[{where}]: the model gave no unit vector")
            return failure(entry, request, problem)
        left_ms = request.expires_at_ms - batch.leased_at_ms
        in_time = not request.expires_at_ms or left_ms >= FALLBACK_MS_MIN + FALLBACK_ROW_MS * extra
        columns = computed.columns.part(rows)
        bulk = is_bulk(entry, request)
        verdicts = decide_batch(gate.policy, gate.allowance, hard, columns, in_time=in_time, bulk=bulk)
        decision = verdicts.decision
        timings = Timings(queue_ms=request.waited_ms(batch.leased_at_ms), **computed.took)
        shared = self._shared[not hard, decision.shed == SHED_DOWN]
        reply = batch_reply(request, shared, computed.vectors[rows], columns, verdicts, timings)
        counters = f"{counters_of(decision, bulk)},{verdicts.counters()}"
        if extra and not bulk:  # the budget counts contexts, and so does its objective
            counters += f",batch:extra={extra}"
            counters += f",{EXTRA_ESCALATED}={extra}" if decision.escalate else ""
        of_file = not extra and request.sequence and request.position >= 0
        mark = self._sampler.file_mark(request) if of_file else ""
        if mark:  # its client sends only what is sampled, so that it stands for a hundred
            counters += f",sampleable={ONE_IN_MAX}"
        return Outcome(
            entry=entry,
            op=_OPS[decision.escalate, request.provisional],
            reply_to=request.reply_to,
            payload=wire.encode_reply(reply),
            counters=counters,
            sample_key=mark,
        )


@lru_cache(maxsize=1024)
def counters_of(decision: Decision, bulk: bool = False) -> str:
    """The counters of a decision: fired is escalated plus shed, rule by rule."""
    counters = "escalated" if decision.escalate else "answered,answered:amn"
    if decision.reasons:
        counters += ",flagged" + "".join(f",reason:{reason}" for reason in decision.reasons)
        counters += ",beyond_budget" if decision.beyond else ""
        counters += f",shed,shed:{decision.shed}" if decision.shed else ""
        counters += f",degraded,degraded:{SHED_DOWN}" if decision.shed == SHED_DOWN else ""
    if bulk:
        counters += f",bulk,{BULK_ESCALATED}" if decision.escalate else ",bulk"
    return counters


def _shared(predictor: Predictor, gate: Gate, banked: bool, degraded: str) -> Reply:
    """The fields that all answers of one kind share."""
    policy, bank = gate.policy, predictor.bank if banked else None
    return Reply(
        id="",
        vector=np.zeros(DIMENSIONS, np.float32),
        confidence=0.0,
        margin=0.0,
        served_by=predictor.name,
        degraded=degraded,
        model=predictor.model_id,
        bank=bank.bank_id if bank else "",
        policy=gate.policy_id,
        confidence_method=policy.confidence_method if bank else "none",
        margin_method=policy.margin_method if bank else "none",
    )
