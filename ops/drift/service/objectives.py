"""Rules about the whole service: its objectives, and the frozen set of sequences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ops.drift.measures.statistics import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.settings import JudgeSettings
from ops.findings import Finding, Severity, State

_HOUR = 60 // BLOCK_MIN
#: The frozen set is replayed hourly; a result older than this says nothing about now, minutes.
_CANARY_MIN = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """One pair of windows of a burn-rate rule.

    Attributes:
        rate: Multiple of the budget that both windows must exceed.
        long_blocks, short_blocks: The windows; the short one ends the alert soon after the trouble.
        severity: How loud.

    Source: Beyer et al., The Site Reliability Workbook (2018), chapter 5, multiwindow, multi-burn-rate.
    """

    rate: float
    long_blocks: int
    short_blocks: int
    severity: Severity


_DAY = BLOCKS_PER_DAY
_STEEP = (
    Burn(rate=14.4, long_blocks=_HOUR, short_blocks=1, severity="page"),
    Burn(rate=6.0, long_blocks=6 * _HOUR, short_blocks=_HOUR // 2, severity="page"),
    Burn(rate=1.0, long_blocks=3 * _DAY, short_blocks=6 * _HOUR, severity="ticket"),
)
#: A budget of 20 % cannot be burnt more than five times as fast.
_FLAT = (
    Burn(rate=2.0, long_blocks=_HOUR, short_blocks=1, severity="page"),
    Burn(rate=1.5, long_blocks=6 * _HOUR, short_blocks=_HOUR // 2, severity="page"),
    Burn(rate=1.0, long_blocks=3 * _DAY, short_blocks=6 * _HOUR, severity="ticket"),
)
#: Nobody waits for it, and nobody is woken up.
_BULK = (Burn(rate=1.0, long_blocks=6 * _HOUR, short_blocks=_HOUR // 2, severity="ticket"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share of requests that may be bad.

    Attributes:
        rule: Name.    what: For a person.
        short: For recorded ratios.
        bad, of: Counters added up, since the first request; those after a minus are taken off.
        burns: Windows.
    """

    rule: str
    short: str
    what: str
    bad: tuple[str, ...]
    of: tuple[str, ...]
    burns: tuple[Burn, ...]

    def budget(self, settings: JudgeSettings) -> float:
        """Allowed share."""
        return float(getattr(settings, f"{self.rule.removeprefix('slo_')}_budget"))


_ENDED = ("answered", "failed", "dead")
#: Bulk work, for which nobody waits, has no part in the objectives of the rest. `slow` and `timed` count
#: AMN's single answers to requests that say when they were submitted. The first counts contexts, as the
#: budget does: a batch is one request, and what it has beyond its first context is counted apart.
OBJECTIVES = (
    Objective(
        rule="slo_fallback",
        short="fallback",
        what="escalated to a fallback",
        bad=("escalated", "batch:extra:escalated", "-bulk:escalated"),
        of=(*_ENDED, "batch:extra", "-bulk"),
        burns=_FLAT,
    ),
    Objective(
        rule="slo_latency",
        short="slow",
        what="slower than 1.2 ms",
        bad=("slow",),
        of=("timed",),
        burns=_STEEP,
    ),
    Objective(
        rule="slo_error",
        short="error",
        what="failed or dead-lettered",
        bad=("failed", "dead", "-bulk:failed"),
        of=(*_ENDED, "-bulk"),
        burns=_STEEP,
    ),
    Objective(
        rule="slo_bulk_latency",
        short="bulk_slow",
        what="of the bulk work slower than a minute",
        bad=("slow:bulk",),
        of=("timed:bulk",),
        burns=_BULK,
    ),
    Objective(
        rule="slo_bulk_error",
        short="bulk_error",
        what="of the bulk work failed or dead-lettered",
        bad=("bulk:failed",),
        of=("bulk",),
        burns=_BULK,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The facts about the service at an evaluation.

    Attributes:
        now_ms: Server's clock.
        counters: Since the first request.
        counts: The same at the ends of past blocks.
        shadow_age_ms: Age of the oldest shadow entry; None when there is none.
        canary: By model, the last result of the frozen set (docs/drift-data.md).
    """

    now_ms: int
    counters: Mapping[str, int]
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    shadow_age_ms: int | None = None
    canary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def since(self, end_block: int, blocks: int, names: Sequence[str]) -> int | None:
        """Returns the growth of these counters since `blocks` before `end_block`; None when not known.

        Where nobody looked then, or the clock skipped that time, one within twice the window has to do.
        """
        wanted = end_block - blocks - 1
        known = [number for number in range(wanted, wanted - blocks - 1, -1) if number in self.counts]
        if not known:
            return None
        then = self.counts[known[0]]
        grown = 0
        for signed in names:
            name = signed.removeprefix("-")
            now, before = self.counters.get(name, 0), then.get(name, 0)
            more = now - before if now >= before else now  # the server was emptied meanwhile
            grown += more if name == signed else -more
        return max(grown, 0)

    def recent(self, blocks: int, names: Sequence[str]) -> int | None:
        """Works like `since`, up to now; for a younger service, since the first block that is known."""
        open_block = self.now_ms // 60_000 // BLOCK_MIN
        for back in range(blocks, -1, -1):
            grown = self.since(open_block, back, names)
            if grown is not None:
                return grown
        return None

    def risen(self, blocks: int, name: str) -> int | None:
        """Returns the rise in the last blocks of a number that may also fall; None if not noted then."""
        open_block = self.now_ms // 60_000 // BLOCK_MIN
        for number in range(open_block - blocks - 1, open_block):
            if name in self.counts.get(number, {}):
                return max(self.counters.get(name, 0) - self.counts[number][name], 0)
        return None


def objectives(service: Service, end_block: int, settings: JudgeSettings) -> list[Finding]:
    """One finding per objective."""
    return [_objective(one, service, end_block, settings) for one in OBJECTIVES]


def _objective(one: Objective, service: Service, end_block: int, settings: JudgeSettings) -> Finding:
    known, firing, values = False, None, {}
    for burn in one.burns:
        shares = []
        for blocks in (burn.long_blocks, burn.short_blocks):
            bad, of = (service.since(end_block, blocks, names) for names in (one.bad, one.of))
            if bad is None or of is None or of < settings.events_min:
                break
            shares.append(bad / of)
        if len(shares) < 2:
            continue
        known = True
        hours = burn.long_blocks * BLOCK_MIN / 60
        values[f"share_{hours:g}h"] = round(shares[0], 5)
        if firing is None and min(shares) > burn.rate * one.budget(settings):
            firing = burn
            text = f"{shares[0]:.1%} {one.what} in {hours:g} h, {one.budget(settings):.1%} are the budget"
    if firing is not None:
        return service_finding(one.rule, firing.severity, "firing", text, values)
    shown = ", ".join(f"{value:.2%} in {name.removeprefix('share_')}" for name, value in values.items())
    if known:
        return service_finding(one.rule, "page", "ok", f"{shown} {one.what}", values)
    return service_finding(
        one.rule, "page", "insufficient", f"fewer than {settings.events_min} requests in a window"
    )


def canary(model: str, service: Service, settings: JudgeSettings) -> Finding:
    """`canary`: an item of the frozen set, replayed through the live path, scores differently.

    Nothing of that is chance: the model, its code or its numbers changed, and not the traffic.
    """
    run = service.canary.get(model, {})
    age_min = service.now_ms // 60_000 - int(run.get("minute", 0))
    if not run.get("n") or not run.get("golden") or age_min > _CANARY_MIN:
        return service_finding(
            "canary", "ticket", "insufficient", "no frozen set was replayed lately", model=model
        )
    change = float(run["max_change"])
    values = {"max_change": round(change, 6), "n": int(run["n"])}
    text = f"of {run['n']} frozen items the cosine of one changed by {change:.5f}, of the others by less"
    if change > settings.canary_ticket:
        severity = "page" if change > settings.canary_page else "ticket"
        return service_finding("canary", severity, "firing", text, values, model=model)
    return service_finding("canary", "page", "ok", text, values, model=model)


def service_finding(
    rule: str,
    severity: str,
    state: State,
    summary: str,
    values: Mapping[str, float | int | str] | None = None,
    model: str = "",
    evaluations: int = 3,
) -> Finding:
    """A finding over all lanes, with the runbook heading of its rule."""
    return Finding(
        rule=rule,
        severity=cast(Severity, severity),
        state=state,
        model=model,
        summary=summary,
        values=values or {},
        runbook=rule,
        evaluations=evaluations,
    )
