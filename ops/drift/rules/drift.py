"""The drift rules at one evaluation: blocks and state in, state and findings out. Pure."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ops.clock import BLOCKS_PER_DAY
from ops.drift.latch import advance, one_page_each
from ops.drift.measures.baseline import Reference, previous
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.comparison import Comparison, Window, compare
from ops.drift.measures.statistics import means
from ops.drift.rules import drops
from ops.drift.rules.baselines import learn_when_due
from ops.drift.rules.drift_rules import RULES, Evidence
from ops.drift.rules.inputs import input_drift
from ops.drift.settings import JudgeSettings
from ops.drift.state import Evaluation, JudgeState, ModelState
from ops.findings import Finding, State, service_finding

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
    audit: list[dict[str, Any]] = []
    for model in sorted(traffic.series):
        present = traffic.minutes[model].nonzero()[0] + traffic.first_block
        known = state.models.setdefault(model, ModelState(first_block=int(present[0])))
        known.last_block = int(present[-1])
        if known.last_block < traffic.end_block - BLOCKS_PER_DAY:
            continue
        rules = ModelRules(model=model, known=known, traffic=traffic, settings=settings, now_ms=now_ms)
        rules.consume()
        compared = rules.compared()
        comparisons |= {(model, lane): seen for lane, seen in compared.items()}
        found = [*rules.findings(compared), input_drift(model, known, traffic, now_ms, settings)]
        audit += learn_when_due(known, model, traffic, now_ms, settings)
        silent = ALL not in compared or bool(compared[ALL].lacks)
        known.silent_since_ms = (known.silent_since_ms or now_ms) if silent else 0
        found = one_page_each(found, known.latches)
        if now_ms - known.declared_ms < _DECLARED_MS:
            # A person said that the present is health: for want of a baseline nothing can contradict. Only
            # for as long as the alerts need to end; then it is "insufficient" again until there is one.
            found = [replace(one, state="ok") if one.state == "insufficient" else one for one in found]
        findings += found
    for model in list(state.models):
        if state.models[model].last_block < traffic.end_block - _FORGOTTEN_BLOCKS:
            del state.models[model]
    return Evaluation(
        now_ms=now_ms, state=state, findings=findings, traffic=traffic, comparisons=comparisons, audit=audit
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRules:
    """The drift rules on one model at one evaluation, by lane; advances the state `known`."""

    model: str
    known: ModelState
    traffic: Traffic
    settings: JudgeSettings
    now_ms: int

    def consume(self) -> None:
        """Lets the detectors take the blocks that were closed since the last time."""
        for lane, detector in self.known.detectors.items():
            end = self.traffic.end_block
            unseen = end - max(detector.next_block, self.traffic.first_block)
            window = self.traffic.window(self.model, lane, end, unseen) if unseen > 0 else None
            if window is not None:
                base = self.known.baselines[lane]
                expected = base.expected(window.first_block, unseen)
                self.known.detectors[lane] = detector.consume(
                    window.first_block, window.sums, expected, base.noise
                )

    def compared(self) -> dict[str, Comparison]:
        """Each lane against its baseline, or against the day before as long as there is none."""
        found = {}
        for lane in sorted(self.traffic.series[self.model]):
            window = self.window(lane)
            reference = self.known.baselines.get(lane) or self.day_before(lane)
            if window is not None and reference is not None:
                found[lane] = compare(window, reference, self.settings)
        return found

    def window(self, lane: str, days_ago: int = 0) -> Window | None:
        """The last 24 h of a lane, or those before; None when some of it was not lived through."""
        end = self.traffic.end_block - days_ago * BLOCKS_PER_DAY
        if end - BLOCKS_PER_DAY < self.known.first_block:
            return None
        return self.traffic.window(self.model, lane, end, BLOCKS_PER_DAY)

    def day_before(self, lane: str) -> Reference | None:
        """The 24 h before the last 24 h as a reference, if they say anything."""
        window = self.window(lane, days_ago=1)
        if window is None or means(window.sums).n.min() < self.settings.requests_min:
            return None
        return previous(window.sums, window.first_block)

    def findings(self, compared: Mapping[str, Comparison]) -> list[Finding]:
        """All rules on all lanes with traffic enough, with a detector, or on which something fires."""
        enough = [lane for lane, seen in compared.items() if lane == ALL or not seen.lacks]
        bars = drops.bars(
            self.settings.pages_per_year,
            len(enough),
            len(self.known.detectors),
            previous_window=any(seen.reference.kind == "previous" for seen in compared.values()),
        )
        latched = [name.partition("|")[2] for name in self.known.latches]
        found = []
        for lane in sorted({ALL, *enough, *self.known.detectors, *latched}):
            at = Evidence(compared.get(lane), self.changes(lane, bars), bars, self.traffic.end_block)
            for name in RULES:
                if name == "ood_delta" and self.settings.card_strict:
                    found.append(self.card(lane))
                elif name != "fast_drop" or at.changes:
                    found.append(self.finding(name, lane, at))
        return found

    def changes(self, lane: str, bars: drops.Bars) -> dict[str, drops.Change]:
        """The changes that the detector sees; none while there is no baseline."""
        detector = self.known.detectors.get(lane)
        if detector is None:
            return {}
        series, end = self.traffic.series[self.model], self.traffic.end_block
        first = max(self.traffic.first_block, end - 2 * BLOCKS_PER_DAY)
        lanes = {name: part[..., first - end :] for name, part in series.items() if name != ALL}
        return drops.changes(detector, self.known.baselines[lane], bars, {} if lane else lanes, first)

    def finding(self, name: str, lane: str, at: Evidence) -> Finding:
        """One rule on one lane: its result, kept by its latch.

        While a rule fires, its series is compared with what it was compared with at the start.
        """
        key, rule, seen = f"{name}|{lane}", RULES[name], at.seen
        latch = self.known.latches.get(key)
        if latch is not None and latch.reference is not None and latch.reference.kind == "previous":
            window = self.window(lane)
            seen = None if window is None else compare(window, latch.reference, self.settings)
        result = rule.evaluate(at._replace(seen=seen), self.settings)
        if seen is not None:
            since = at.end_block - seen.recent_blocks
            result = replace(result, seen_from_block=since, reference=seen.reference)
        ended = advance(self.known.latches, key, result, self.now_ms, self.settings)
        if ended and lane in self.known.detectors:  # the incident is over, and its evidence goes with it
            self.known.detectors[lane] = self.known.detectors[lane].without(rule.rows)
        latch = self.known.latches.get(key)
        enough = name == "fast_drop" or (seen is not None and not seen.lacks)
        severity = latch.severity if latch else "page"
        state: State = "firing" if latch else "ok" if enough else "insufficient"
        said = (result.summary, result.values, self.model, rule.evaluations)
        return replace(service_finding(name, severity, state, *said), lane=lane)

    def card(self, lane: str) -> Finding:
        """`ood_delta` to the letter of the card: more than 0.03 below the 24 h before, and nothing else."""
        deltas = [
            math.nan if window is None else float(means(window.sums).delta)
            for window in (self.window(lane), self.window(lane, days_ago=1))
        ]
        state: State = "insufficient"
        text, values = "two whole days are needed", {}
        if not math.isnan(sum(deltas)):
            now, before = deltas
            state = "firing" if before - now > self.settings.drop_page else "ok"
            values = {"delta": round(now, 4), "delta_before": round(before, 4)}
            text = f"OOD delta {now:.4f}, the 24 h before {before:.4f} (the card's rule alone)"
        return replace(service_finding("ood_delta", "page", state, text, values, self.model, 1), lane=lane)
