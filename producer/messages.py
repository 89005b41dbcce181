"""The three values that cross the queue: Request, Reply, Failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

CONTEXT_VECTORS = 5
DIMENSIONS = 768
CONTEXT_SHAPE = (CONTEXT_VECTORS, DIMENSIONS)
#: Contexts in one message.
BATCH_CONTEXTS_MAX = 256
NORM_TOLERANCE = 1e-3
PAYLOAD_BYTES_MAX = 64 * 1024
#: Limit of a batch: 256 float32 contexts, and room for the other fields.
BATCH_BYTES_MAX = 4 * 1024**2
#: A text field longer than this is not a name any more.
TEXT_LENGTH_MAX = 512
#: Stands for a fallback's calibration that was fitted for other models: while workers are replaced in turn,
#: the old fallback answers what the new AMN escalated.
UNFIT = "none"

DEFAULT_ENCODER = "all-mpnet-base-v2/mean/l2"
DEFAULT_LANE = "general"
#: The four lanes that the model card calls high-stakes, and two ordinary ones beside the default.
LANES = (
    DEFAULT_LANE,
    "narrative",
    "code-api",
    "sci-fact",
    "math-derivation",
    "med-guideline",
    "policy/procedure",
)

#: Levels of a queue, the most urgent first.
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
DEFAULT_PRIORITY: Final = "normal"
#: The level of work that nobody waits for: files, jobs, reprocessing. It has objectives of its own.
BULK_PRIORITY: Final = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One context to be continued, or a batch of them under one id.

    Attributes:
        id: Unique per request, at most 64 characters of `[A-Za-z0-9_.:-]`.
        reply_to: Client id; replies go to that client's reply stream.
        context: Shape (5, 768), float32 or float16, unit-norm rows, oldest first; (n, 5, 768) of a
            batch, whose other fields hold for all of it.
        lane: Kind of traffic; some lanes are always escalated.
        tokens: Token equivalent of the context (0: unknown).
        encoder: Recipe that made the vectors (model, pooling, norm).
        submitted_at_ms: Producer's UTC clock, epoch milliseconds.
        expires_at_ms: Absolute deadline, epoch milliseconds; 0 for none.
        sequence: Id of the document that the context slides over, or "".
        position: Index of the context's newest vector in that sequence; -1 without one.
        domain: Explicit domain of the text, or "".
        escalate: Whether the client asks for a fallback's answer.
        provisional: Whether an escalated request also wants the fast answer at once.
        traceparent: W3C trace context, or "".
        priority: One of `PRIORITIES`; which stream of the queue it went to.
    """

    id: str
    reply_to: str
    context: NDArray[np.floating]
    lane: str = DEFAULT_LANE
    tokens: int = 0
    encoder: str = DEFAULT_ENCODER
    submitted_at_ms: float = 0.0
    expires_at_ms: float = 0.0
    sequence: str = ""
    position: int = -1
    domain: str = ""
    escalate: bool = False
    provisional: bool = False
    traceparent: str = ""
    priority: str = DEFAULT_PRIORITY

    @property
    def batched(self) -> bool:
        """True for a batch, also for one of a single context."""
        return self.context.ndim == 3

    @property
    def count(self) -> int:
        """Contexts in it."""
        return len(self.context) if self.context.ndim == 3 else 1

    def waited_ms(self, now_ms: float) -> float:
        """Since its submit; 0 when it does not say when that was."""
        return now_ms - self.submitted_at_ms if self.submitted_at_ms else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The time that each stage of a request took, in milliseconds.

    Attributes:
        queue_ms: From the producer's clock at submit to the worker's clock at the read; 0 where the
            request does not say when it was submitted.
        batch_ms: From the read to the start of the model, decoding included.
        compute_ms: Model and gate, for the whole batch this request was in.
        batch_size: Contexts in that batch.
    """

    queue_ms: float = 0.0
    batch_ms: float = 0.0
    compute_ms: float = 0.0
    batch_size: int = 0


def _line(reply: Reply | BatchReply, **counted: object) -> str:
    """A reply as one line: no vectors, and of the rest what is set."""
    told = {"id": reply.id, "served_by": reply.served_by, **counted}
    told |= {"provisional": reply.provisional, "degraded": reply.degraded}
    short = {name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()}
    shown = (f"{name}={value!r}" for name, value in short.items() if value or isinstance(value, float))
    return f"{type(reply).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer.

    Attributes:
        id: The request's id.
        vector: Shape (768,), float32, unit norm: the predicted next vector.
        confidence: Best cosine of the AMN prediction to the reference bank (`confidence_method`).
        margin: Best minus second best cosine, near-duplicates merged (`margin_method`).
        reasons: Escalation rules that fired, in the policy's order; empty when none did.
        served_by: Name of the model that made `vector`: "amn" or a fallback's name.
        provisional: True for the fast answer of an escalated request; the final one follows.
        shed: Why a fired rule did not escalate ("budget", "fallback_full", "deadline"), or "".
        degraded: Why the fast answer stands in for a fallback that failed, or "".
        model: Model id, `name@sha256[:12]`.
        bank: Reference bank id.    policy: Escalation policy id.
        gain: Predicted gain of asking a fallback, in cosine; 0 where the policy does not ask.
        tiers: Of every model that was asked, by model id: its expected cosine with the truth, and
            its weight in `vector`. Empty when AMN alone answered.
        timings: Of the worker that made this answer.
        traceparent: The request's, or "".
    """

    id: str
    vector: NDArray[np.float32]
    confidence: float
    margin: float
    reasons: tuple[str, ...] = ()
    served_by: str = "amn"
    provisional: bool = False
    shed: str = ""
    degraded: str = ""
    model: str = ""
    bank: str = ""
    policy: str = ""
    confidence_method: str = "top1"
    margin_method: str = "distinct"
    traceparent: str = ""
    gain: float = 0.0
    tiers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)

    def __repr__(self) -> str:
        scores = {"confidence": self.confidence, "margin": self.margin}
        return _line(self, **scores, reasons=self.reasons, shed=self.shed)

    def shed_for(self, why: str) -> Self:
        """Makes this the final answer of a request whose escalation was overruled."""
        return replace(self, provisional=False, shed=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReply:
    """The answer to a batch of n contexts; row r of each array belongs to context r.

    What is not listed here is as in `Reply`, and said of all rows.

    Attributes:
        vectors: Shape (n, 768), float32, unit norm.
        confidences, margins: Shape (n,), float32.
        rules: Names of escalation rules.
        fired: Shape (n,), uint8: bit i is set where `rules[i]` fired.
        sheds: Why rows that a rule flagged were not escalated: "batch" (a soft rule: send the row by
            itself to have it escalated), "no_gain", "deadline", "fallback_down", "fallback_full".
        shed: Shape (n,), uint8: 0, or 1 + the index in `sheds`.
        served_by: The fallback's name as soon as one row has any of its answer.
        gains: Shape (n,), float32: predicted gains of asking a fallback; 0 where the policy does not.
        tiers: Of every model that was asked, by model id: shape (n, 2), float32, expected cosine and
            weight of each row. Empty when AMN alone answered.
        calibration: Id of the calibration by which a fallback's answers were blended, `UNFIT` where it was
            fitted for other models. Empty when AMN alone answered.
    """

    id: str
    vectors: NDArray[np.float32]
    confidences: NDArray[np.float32]
    margins: NDArray[np.float32]
    rules: tuple[str, ...]
    fired: NDArray[np.uint8]
    sheds: tuple[str, ...]
    shed: NDArray[np.uint8]
    gains: NDArray[np.float32]
    served_by: str = "amn"
    provisional: bool = False
    degraded: str = ""
    model: str = ""
    bank: str = ""
    policy: str = ""
    confidence_method: str = "top1"
    margin_method: str = "distinct"
    traceparent: str = ""
    tiers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    calibration: str = ""
    timings: Timings = field(default_factory=Timings)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        fired, shed = (int(np.count_nonzero(rows)) for rows in (self.fired, self.shed))
        return _line(self, rows=len(self), fired=fired, shed=shed)

    def fired_by(self, rule: str) -> NDArray[np.bool_]:
        """Shape (n,): where this rule fired."""
        bit = 1 << self.rules.index(rule) if rule in self.rules else 0
        return np.asarray((self.fired & bit) != 0)

    def shed_as(self, why: str) -> NDArray[np.bool_]:
        """Shape (n,): which rows were flagged and not escalated for this reason."""
        return np.asarray(self.shed == (1 + self.sheds.index(why) if why in self.sheds else 255))

    def reasons(self, row: int) -> tuple[str, ...]:
        """The rules that fired for one row, as `Reply.reasons`."""
        return tuple(rule for bit, rule in enumerate(self.rules) if self.fired[row] >> bit & 1)

    def single(self) -> Reply:
        """The answer to the first context, without its rules."""
        names = "id", "served_by", "degraded", "model", "bank", "policy", "timings"
        return Reply(
            vector=self.vectors[0],
            confidence=float(self.confidences[0]),
            margin=float(self.margins[0]),
            confidence_method=self.confidence_method,
            margin_method=self.margin_method,
            **{name: getattr(self, name) for name in names},
        )

    def shed_for(self, why: str) -> Self:
        """Works like `Reply.shed_for`, for all rows."""
        return replace(self, provisional=False, sheds=(why,), shed=np.ones(len(self), np.uint8))


#: The outcome of a request when all goes well.
Answer = Reply | BatchReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A named failure: the terminal state of a request that got no vector."""

    id: str
    code: str
    message: str
    retryable: bool = False
    traceparent: str = ""
