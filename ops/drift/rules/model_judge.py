"""The drift rules on one model at one evaluation: ood_delta, fast_drop and level, by lane. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ops.clock import BLOCKS_PER_DAY
from ops.drift.latch import Latch, Seen, advance
from ops.drift.measures.baseline import Reference, previous
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.comparison import Comparison, Window, compare
from ops.drift.measures.statistics import means
from ops.drift.rules import verdicts as rules
from ops.drift.rules.wording import (
    change_values,
    comparison_values,
    delta_text,
    fast_text,
    level_text,
    level_values,
)
from ops.drift.settings import JudgeSettings
from ops.drift.state import ModelState
from ops.findings import Finding, State

_Lasts = Callable[[Comparison, JudgeSettings], bool]


@dataclass(slots=True, kw_only=True)
class ModelJudge:
    """One model at one evaluation."""

    model: str
    state: ModelState
    traffic: Traffic
    settings: JudgeSettings
    now_ms: int

    def compared(self) -> dict[str, Comparison]:
        """By lane, against the baseline, or against the day before as long as there is none."""
        found = {}
        for lane in sorted(self.traffic.series[self.model]):
            window = self.window(lane)
            reference = self.state.baselines.get(lane) or self.day_before(lane)
            if window is not None and reference is not None:
                found[lane] = compare(window, reference, self.settings)
        return found

    def window(self, lane: str, days_ago: int = 0) -> Window | None:
        """The last 24 h of a lane, or those before; None when some of it was not lived through."""
        end = self.traffic.end_block - days_ago * BLOCKS_PER_DAY
        if end - BLOCKS_PER_DAY < self.state.first_block:
            return None
        return self.traffic.window(self.model, lane, end, BLOCKS_PER_DAY)

    def day_before(self, lane: str) -> Reference | None:
        """The 24 h before the last 24 h as a reference, if they say anything."""
        window = self.window(lane, days_ago=1)
        if window is None or means(window.sums).n.min() < self.settings.requests_min:
            return None
        return previous(window.sums, window.first_block)

    def findings(self, comparisons: Mapping[tuple[str, str], Comparison]) -> list[Finding]:
        """All rules on all lanes; advances the latches."""
        mine = {lane: seen for (model, lane), seen in comparisons.items() if model == self.model}
        judged = [lane for lane, seen in mine.items() if lane == ALL or not seen.lacks]
        bars = rules.bars(
            self.settings.pages_per_year,
            len(judged),
            len(self.state.detectors),
            previous_window=any(seen.reference.kind == "previous" for seen in mine.values()),
        )
        found = []
        for lane in sorted({ALL, *judged, *self.state.detectors, *self.latched_lanes()}):
            found += self.of_lane(lane, mine.get(lane), bars)
        return found

    def latched_lanes(self) -> set[str]:
        """Lanes on which something fires, whatever their traffic is now."""
        return {name.partition("|")[2] for name in self.state.latches}

    def of_lane(self, lane: str, seen: Comparison | None, bars: rules.Bars) -> list[Finding]:
        """The three drift rules on one lane."""
        changes = self.changes(lane, bars)
        found = [self.delta(lane, seen, bars.delta_se)]
        if changes:
            found.append(self.fast(lane, seen, changes))
        found.append(self.level(lane, seen, changes, bars.level_se))
        return found

    def changes(self, lane: str, bars: rules.Bars) -> dict[str, rules.Change]:
        """Returns the changes that the detector sees; none while there is no baseline."""
        detector = self.state.detectors.get(lane)
        if detector is None:
            return {}
        series, end = self.traffic.series[self.model], self.traffic.end_block
        first = max(self.traffic.first_block, end - 2 * BLOCKS_PER_DAY)
        lanes = {name: part[..., first - end :] for name, part in series.items() if name != ALL}
        return rules.changes(detector, self.state.baselines[lane], bars, lanes if lane == ALL else {}, first)

    def delta(self, lane: str, seen: Comparison | None, u: float) -> Finding:
        """`ood_delta`."""
        if self.settings.card_strict:
            return self.card(lane)
        seen = self.relatched("ood_delta", lane, seen)
        fires = rules.delta_fires(seen, u, self.settings) if seen else ""
        lasting = self.after_change("ood_delta", lane, seen, rules.delta_lasts)
        latch = self.advance("ood_delta", lane, Seen(fires=fires, lasting=lasting), seen)
        values = comparison_values(seen) | {"u_se": round(u, 2)} if seen else {}
        return self.finding("ood_delta", lane, latch, seen, delta_text(seen), values)

    def card(self, lane: str) -> Finding:
        """`ood_delta` to the letter of the card."""
        now, before = self.window(lane), self.window(lane, days_ago=1)
        state: State
        values: dict[str, float]
        text, values, state = "two whole days are needed", {}, "insufficient"
        if now is not None and before is not None:
            delta, earlier = (float(means(window.sums).delta) for window in (now, before))
            if not math.isnan(delta - earlier):
                state = "firing" if rules.card_fires(delta, earlier, self.settings) else "ok"
                values = {"delta": round(delta, 4), "delta_before": round(earlier, 4)}
                text = f"OOD delta {delta:.4f}, the 24 h before {earlier:.4f} (the card's rule alone)"
        return Finding(
            rule="ood_delta",
            severity="page",
            state=state,
            model=self.model,
            lane=lane,
            summary=text,
            values=values,
            runbook="ood_delta",
            evaluations=1,
        )

    def fast(self, lane: str, seen: Comparison | None, changes: Mapping[str, rules.Change]) -> Finding:
        """`fast_drop`."""
        change = changes["delta"]
        fires = rules.fast_fires(change, self.settings)
        lasting = self.after_change("fast_drop", lane, seen, rules.delta_lasts)
        report = Seen(fires=fires, lasting=lasting, change_block=change.block)
        latch = self.advance("fast_drop", lane, report, seen)
        return self.finding(
            "fast_drop", lane, latch, seen, fast_text(change), change_values(change), evaluations=1
        )

    def level(
        self, lane: str, seen: Comparison | None, changes: Mapping[str, rules.Change], u: float
    ) -> Finding:
        """`level`, by 24 h or by the fast detector."""
        seen = self.relatched("level", lane, seen)
        slow = rules.level_fires(seen, u, self.settings) if seen else ""
        fast = rules.fast_level_fires(changes, self.settings) if changes else ""
        fires = "page" if "page" in (slow, fast) else slow or fast
        lasting = self.after_change("level", lane, seen, rules.level_lasts)
        block = max(changes[name].block for name in ("ood", "id")) if fast else 0
        latch = self.advance("level", lane, Seen(fires=fires, lasting=lasting, change_block=block), seen)
        text, values = level_text(seen, changes), level_values(seen, changes, u)
        return self.finding("level", lane, latch, seen, text, values)

    def relatched(self, rule: str, lane: str, seen: Comparison | None) -> Comparison | None:
        """While a rule fires, its series is compared with what it was compared with at the start."""
        latch = self.state.latches.get(f"{rule}|{lane}")
        if latch is None or latch.reference is None or latch.reference.kind == "baseline":
            return seen
        window = self.window(lane)
        return None if window is None else compare(window, latch.reference, self.settings)

    def after_change(self, rule: str, lane: str, seen: Comparison | None, lasts: _Lasts) -> bool | None:
        """Says whether the drop lasts; None when the recent window reaches back before the change."""
        latch = self.state.latches.get(f"{rule}|{lane}")
        if seen is None:
            return None
        if lasts(seen, self.settings):
            return True
        began = self.traffic.end_block - seen.recent_blocks
        return None if latch is not None and began < latch.change_block else False

    def advance(self, rule: str, lane: str, report: Seen, seen: Comparison | None) -> Latch | None:
        """Moves the latch on and keeps it."""
        name = f"{rule}|{lane}"
        report = replace(report, change_block=report.change_block or self.traffic.end_block)
        reference = seen.reference if seen else None
        latch = advance(self.state.latches.get(name), report, reference, self.now_ms, self.settings)
        if latch is not None:
            self.state.latches[name] = latch
        elif self.state.latches.pop(name, None) is not None and lane in self.state.detectors:
            # The incident is over, and its evidence goes with it.
            self.state.detectors[lane] = self.state.detectors[lane].without(_ROWS.get(rule, ()))
        return latch

    def finding(
        self,
        rule: str,
        lane: str,
        latch: Latch | None,
        seen: Comparison | None,
        summary: str,
        values: Mapping[str, Any],
        evaluations: int = 3,
    ) -> Finding:
        """The finding of a latch; without one, "ok" where there was enough to say so."""
        enough = rule == "fast_drop" or (seen is not None and not seen.lacks)
        return Finding(
            rule=rule,
            severity=latch.severity if latch else "page",
            state="firing" if latch else ("ok" if enough else "insufficient"),
            model=self.model,
            lane=lane,
            summary=summary,
            values=values,
            runbook=rule,
            evaluations=evaluations,
        )


#: Rows of the detector's watched means that a rule goes by.
_ROWS = {"fast_drop": (0,), "level": (1, 2)}
