"""One evaluation of the drift rules: blocks and state in, state and findings out. Pure."""

from __future__ import annotations

import copy
from dataclasses import replace

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.comparison import Comparison
from ops.drift.rules import learning
from ops.drift.rules.inputs import input_drift
from ops.drift.rules.model_judge import ModelJudge
from ops.drift.rules.pages import one_page_each
from ops.drift.settings import JudgeSettings
from ops.drift.state import Evaluation, JudgeState, ModelState
from ops.findings import Finding

#: A model without traffic for this long is forgotten.
_FORGOTTEN_BLOCKS = 8 * BLOCKS_PER_DAY
#: An alert fires for 30 minutes at least, and rests for 10 before it ends.
_DECLARED_MS = 60 * 60_000


def evaluate_drift(traffic: Traffic, state: JudgeState, now_ms: int, settings: JudgeSettings) -> Evaluation:
    """Judges every model with traffic in the last 24 h.

    The state that comes in is left as it is. Judging the same traffic twice, or after a restart
    with the stored state, gives the same.
    """
    state = copy.deepcopy(state)
    findings: list[Finding] = []
    comparisons: dict[tuple[str, str], Comparison] = {}
    learned = []
    for model in sorted(traffic.series):
        known = _known(state, model, traffic)
        if known.last_block < traffic.end_block - BLOCKS_PER_DAY:
            continue
        _consume(known, model, traffic)
        judged = ModelJudge(model=model, state=known, traffic=traffic, settings=settings, now_ms=now_ms)
        for lane, seen in judged.compared().items():
            comparisons[model, lane] = seen
        found = judged.findings(comparisons)
        found.append(input_drift(model, known, traffic, now_ms, settings))
        if learning.update(known, model, traffic, settings):
            learned.append(model)
        _mark_silence(known, comparisons.get((model, ALL)), now_ms)
        findings += _declared(one_page_each(found, known), known, now_ms)
    for model in list(state.models):
        if state.models[model].last_block < traffic.end_block - _FORGOTTEN_BLOCKS:
            del state.models[model]
    return Evaluation(
        now_ms=now_ms,
        state=state,
        findings=findings,
        traffic=traffic,
        comparisons=comparisons,
        learned=learned,
    )


def _known(state: JudgeState, model: str, traffic: Traffic) -> ModelState:
    present = traffic.minutes[model].nonzero()[0] + traffic.first_block
    known = state.models.setdefault(model, ModelState(first_block=int(present[0])))
    known.last_block = int(present[-1])
    return known


def _consume(known: ModelState, model: str, traffic: Traffic) -> None:
    """Lets the detectors take the blocks that were closed since the last time."""
    for lane, detector in known.detectors.items():
        unseen = traffic.end_block - max(detector.next_block, traffic.first_block)
        window = traffic.window(model, lane, traffic.end_block, unseen) if unseen > 0 else None
        if window is None:
            continue
        reference = known.baselines[lane]
        known.detectors[lane] = detector.consume(
            window.first_block,
            window.sums,
            reference.expected(window.first_block, window.sums.shape[-1]),
            reference.noise,
        )


def _declared(found: list[Finding], known: ModelState, now_ms: int) -> list[Finding]:
    """A person said that the present is health: for want of a baseline nothing can contradict.

    Only for as long as the alerts need to end; then it is "insufficient" again until there is one.
    """
    if now_ms - known.declared_ms >= _DECLARED_MS:
        return found
    return [replace(one, state="ok") if one.state == "insufficient" else one for one in found]


def _mark_silence(known: ModelState, seen: Comparison | None, now_ms: int) -> None:
    if seen is not None and not seen.lacks:
        known.silent_since_ms = 0
    else:
        known.silent_since_ms = known.silent_since_ms or now_ms
