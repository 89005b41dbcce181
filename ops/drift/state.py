"""The judge's memory from one evaluation to the next; plain values, written under the fence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ops.drift.latch import Latch
from ops.drift.measures.baseline import Reference
from ops.drift.measures.blocks import Traffic
from ops.drift.measures.comparison import Comparison
from ops.drift.measures.detector import Detector
from ops.findings import Finding

VERSION = 1


@dataclass(slots=True, kw_only=True)
class ModelState:
    """One model version.

    Attributes:
        first_block: Learning uses nothing before it.
        learned_block: When the baselines were last taken; 0 before the first time.
        frozen: Says whether they are final.
        baselines: By lane, "" for all.
        histograms: By name, counts by bin while the model was well.
        shares: By slice, sampled requests while the model was well.
        wander_bits: How far an hour's inputs went from those of the baseline while it was taken.
        inputs_since_block: End of the last page about the inputs; what came before it is told.
        declared_ms: When a person declared the present to be health; 0 for never.
        detectors: By lane.
        latches: By rule and lane, as "rule|lane".
        silent_since_ms: Since when there was too little data to judge; 0 when there is enough.
        last_block: Newest block with traffic.
    """

    first_block: int
    learned_block: int = 0
    frozen: bool = False
    baselines: dict[str, Reference] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=dict)
    wander_bits: float = 0.0
    inputs_since_block: int = 0
    declared_ms: int = 0
    detectors: dict[str, Detector] = field(default_factory=dict)
    latches: dict[str, Latch] = field(default_factory=dict)
    silent_since_ms: int = 0
    last_block: int = 0


_NESTED: dict[str, Any] = {"baselines": Reference, "detectors": Detector, "latches": Latch}


@dataclass(slots=True, kw_only=True)
class JudgeState:
    """All models, by model id."""

    version: int = VERSION
    models: dict[str, ModelState] = field(default_factory=dict)

    def rewind(self, back_ms: int) -> None:
        """Moves every time back with the server's clock, so that spans stay as long as they are."""
        for model in self.models.values():
            model.declared_ms = _rewound(model.declared_ms, back_ms)
            model.silent_since_ms = _rewound(model.silent_since_ms, back_ms)
            for name, latch in model.latches.items():
                gone_ms = _rewound(latch.gone_since_ms, back_ms)
                model.latches[name] = replace(latch, since_ms=latch.since_ms - back_ms, gone_since_ms=gone_ms)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `stored.dumps`.

        Raises:
            ValueError: Written by another version.
        """
        if stored.get("version") != VERSION:
            raise ValueError(
                f"the judge's state has version {stored.get('version')!r}; this program knows {VERSION}"
            )
        models = {}
        for model, values in stored["models"].items():
            nested = {
                name: {key: kind.from_json(one) for key, one in values[name].items()}
                for name, kind in _NESTED.items()
            }
            models[model] = ModelState(**{**values, **nested})
        return cls(models=models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A person's wish: take the last `hours` of a model as its measure of health.

    Attributes:
        model: Model id.    hours: 0 for "from now on".
        who, why: For the audit.    at_ms: When it was given.
    """

    model: str
    hours: int
    who: str
    why: str
    at_ms: int


def _rewound(at_ms: int, back_ms: int) -> int:
    """A time of before the clock went back; 0, for never, stays."""
    return at_ms - back_ms if at_ms else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation of the rules, before it is written.

    Attributes:
        now_ms: Server's clock.
        state: The judge's state afterwards.
        findings: Every rule on every series, also those that rest.
        traffic: The blocks that were judged.
        comparisons: Each series against its reference, by model and lane.
        audit: Baselines that were declared or taken just now, oldest first.
        counters: The queue's counters now.
        minute: Reads and makes the row of the history (ops/drift/service/history.py).
    """

    now_ms: int
    state: JudgeState
    findings: Sequence[Finding] = ()
    traffic: Traffic = field(default_factory=lambda: Traffic.of(0, []))
    comparisons: Mapping[tuple[str, str], Comparison] = field(default_factory=dict)
    audit: Sequence[Mapping[str, Any]] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    minute: Callable[[], Mapping[str, float | None]] = dict
