"""`amn drift report`: one self-contained page for whoever was woken up."""

from __future__ import annotations

import datetime
import html
from collections.abc import Mapping, Sequence

from ops.clock import BLOCK_MIN
from ops.drift.measures import hourly
from ops.drift.measures.blocks import ALL
from ops.drift.measures.comparison import Comparison
from ops.drift.memory import Memory
from ops.drift.rules.verdicts import bars
from ops.drift.service.objectives import OBJECTIVES
from ops.drift.settings import JudgeSettings
from ops.drift.show import pictures, plots
from ops.drift.show.views import STAND_INS, main_model, one_line, stand_ins
from ops.drift.state import Evaluation
from ops.findings import Finding
from producer.keys import Keys
from workers.shadow.exemplars import RANDOM, WORST, Exemplar

_CSS = """
:root { color-scheme: light dark;
  --back: #fff; --ink: #1c2530; --soft: #5b6673; --line: #d9dee5; --card: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181d; --ink: #e4e8ed; --soft: #9aa5b1; --line: #313a44; --card: #1b2128 }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1rem 4rem;
  background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: .5rem 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
.verdict { border-left: .4rem solid var(--mark); background: var(--card); padding: .7rem 1rem; margin: 1rem 0;
  overflow-wrap: anywhere }
.soft { color: var(--soft); font-size: .88rem; overflow-wrap: anywhere } .wide { overflow-x: auto }
.wide svg { display: block; width: 100%; min-width: 34rem; height: auto }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.page { color: #d64545; font-weight: 600 } .ticket { color: #c58a12; font-weight: 600 }
details { margin: 1rem 0 } summary { cursor: pointer; color: var(--soft) }
@media (max-width: 40rem) {
  .rules tr { display: flex; flex-wrap: wrap; gap: 0 .8rem; border-bottom: 1px solid var(--line) }
  .rules th { display: none } .rules td { border: 0; padding: .2rem 0 } .rules td:last-child { width: 100% }
}
.ok { color: #2a9d6f } .insufficient { color: var(--soft) }
"""
#: Rows of each slice and kind.
_EXEMPLARS = 10
_MARKS = {"PAGE": "#d64545", "TICKET": "#c58a12", "OK": "#2a9d6f"}


def page(
    keys: Keys,
    memory: Memory,
    found: Evaluation,
    exemplars: Sequence[Exemplar] = (),
    model: str | None = None,
    settings: JudgeSettings | None = None,
) -> str:
    """The page as HTML text; pictures are inline, nothing is loaded from anywhere.

    Args:
        keys: Of the queue.
        memory: The judge's.
        found: An evaluation.
        exemplars: Of the last 24 h, the worst first.
        model: Whose; the one that most samples are of, when None.
        settings: The judge's.

    Raises:
        ValueError: Nothing was sampled of this model.
    """
    settings = settings or JudgeSettings()
    model = model or main_model(found)
    at = datetime.datetime.fromtimestamp(found.now_ms / 1000, datetime.UTC)
    body = [f"<h1>Drift report, queue {_text(keys.queue)}</h1>", _verdict(one_line(found))]
    body.append(f'<p class="soft">{at:%Y-%m-%d %H:%M} UTC, model {_text(model or "none")}</p>')
    body.append(_rules(found.findings))
    if model is None:
        body.append(
            "<p>Nothing was sampled in the last eight days, or only in the last minutes, which are not "
            "judged yet: there is nothing to draw.</p>"
        )
    elif model not in found.traffic.series:
        raise ValueError(f"nothing was sampled of model {model!r} in the last eight days")
    else:
        body += _pictures(found, memory, model, settings)
        body.append(_exemplars([one for one in exemplars if one.model == model]))
    body.append(_audit(memory))
    inner = "\n".join(body)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Drift report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head><body>{inner}</body></html>\n"
    )


def _pictures(found: Evaluation, memory: Memory, model: str, settings: JudgeSettings) -> list[str]:
    traffic, known = found.traffic, found.state.models[model]
    sums, reference = traffic.series[model][ALL], known.baselines.get(ALL)
    hours = hourly.hours_of(sums, traffic.first_block, reference)
    lanes = {lane: seen for (name, lane), seen in found.comparisons.items() if name == model}
    parts = [
        "<h2>Mean cosines and the OOD delta, 48 h</h2>",
        _wide(plots.means_plot(hours, hourly.week_before(sums), settings.drop_page)),
    ]
    if reference is not None:
        bar = bars(settings.pages_per_year, len(lanes) or 1, len(known.detectors) or 1)
        ago, course = hourly.evidence_course(sums, traffic.first_block, reference)
        needed = {"delta": bar.fast_delta, "mean": bar.fast_level}
        parts += ["<h2>Since when</h2>", _wide(plots.evidence_plot(ago, course, needed))]
    else:
        parts.append("<p>There is no baseline yet, so the fast detector does not run.</p>")
    if lanes:
        parts += ["<h2>Where</h2>", _wide(plots.lanes_plot(lanes, settings.drop_page)), _lanes(lanes)]
    parts += ["<h2>What the scores look like</h2>", _wide(pictures.cosines(found, known, model))]
    parts += pictures.inputs(found, known, model)
    parts += [_stand_ins(found, model)]
    parts += ["<h2>What else moved</h2>", _wide(_strips(found, memory, model, hours, settings))]
    return parts


def _stand_ins(found: Evaluation, model: str) -> str:
    """The tiers that are not judged."""
    rows = [
        f"<tr><td>{STAND_INS[one.tier]}</td><td>{_text(one.slice)}</td>"
        f"<td class=n>{one.mean:.4f}</td><td class=n>{one.n:,}</td></tr>"
        for one in stand_ins(found, model)
    ]
    if not rows:
        return ""
    head = "<tr><th>AMN against</th><th>slice</th><th class=n>cosine, 24 h</th><th class=n>n</th></tr>"
    note = '<p class="soft">No truth, and never averaged with it: for comparison, not judged.</p>'
    return f"<h2>Against what stands in for the truth</h2>{note}<table>{head}{''.join(rows)}</table>"


def _strips(
    found: Evaluation, memory: Memory, model: str, hours: hourly.Hours, settings: JudgeSettings
) -> str:
    end = found.now_ms // 60_000 // BLOCK_MIN
    counts = memory.counts(end)
    sums = found.traffic.series[model][ALL]
    shown = [
        ("OOD share of the samples", hourly.share_of(found.traffic, model), None),
        ("truths that came", hourly.coverage_of(sums), settings.coverage_min),
        ("sampled", hourly.counter_shares(counts, end, ("shadowed",), ("answered",)), settings.sample_min),
    ]
    for one in OBJECTIVES:
        share = hourly.counter_shares(counts, end, one.bad, one.of)
        shown.append((one.what, share, one.budget(settings)))
    return plots.strips_plot(hours.ago, shown)


def _verdict(line: str) -> str:
    mark = next((colour for word, colour in _MARKS.items() if line.startswith(word)), "#8a94a0")
    return f'<div class="verdict" style="--mark: {mark}">{_text(line)}</div>'


def _rules(findings: Sequence[Finding]) -> str:
    """Shows the rules that fire, and folds the others away."""
    order = {"firing": 0, "insufficient": 1, "ok": 2}
    ordered = sorted(findings, key=lambda f: (order[f.state], f.severity != "page", f.rule, f.lane))
    firing = [one for one in ordered if one.state == "firing"]
    resting = [one for one in ordered if one.state != "firing"]
    shown = _rule_table(firing) if firing else "<p>No rule fires.</p>"
    folded = f"<details><summary>{len(resting)} other checks</summary>{_rule_table(resting)}</details>"
    return shown + folded


def _rule_table(findings: Sequence[Finding]) -> str:
    rows = []
    for one in findings:
        says = one.severity if one.state == "firing" else one.state
        beside = f" (beside {one.beside})" if one.beside else ""
        rows.append(
            f'<tr><td>{_text(one.rule)}</td><td>{_text(one.lane or "all")}</td><td class="{says}">{says}</td>'
            f"<td>{_text(one.summary + beside)}</td></tr>"
        )
    head = "<tr><th>rule</th><th>lane</th><th>says</th><th>what</th></tr>"
    return f'<table class="rules">{head}{"".join(rows)}</table>'


def _lanes(lanes: Mapping[str, Comparison]) -> str:
    names = ("lane", "m_OOD", "m_ID", "D", "drop", "99 % interval", "n OOD / ID")
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    rows = []
    for lane, seen in lanes.items():
        low, high = seen.delta.interval
        cells = [
            f"{seen.mean_ood:.4f} ({-seen.ood.value:+.4f})",
            f"{seen.mean_id:.4f} ({-seen.inside.value:+.4f})",
            f"{seen.delta_now:+.4f}",
            f"{seen.delta.value:+.4f}",
            f"{low:+.4f} {high:+.4f}",
            f"{seen.n_ood:,.0f} / {seen.n_id:,.0f}",
        ]
        inner = "".join(f"<td class=n>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{_text(lane or 'all')}</td>{inner}</tr>")
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _exemplars(found: Sequence[Exemplar]) -> str:
    """The worst and the most typical of each slice."""
    names = ("when (UTC)", "request", "lane", "slice", "kind", "cosine", "fallback's", "OOD score")
    rows = []
    for slice_, kind in ((s, k) for s in ("ood", "id") for k in (WORST, RANDOM)):
        for one in [e for e in found if (e.slice, e.kind) == (slice_, kind)][:_EXEMPLARS]:
            at = datetime.datetime.fromtimestamp(one.minute * 60, datetime.UTC)
            words = (f"{at:%m-%d %H:%M}", one.key, one.lane, slice_, kind)
            figures = (one.cosine, one.fallback, one.ood)
            cells = "".join(f"<td>{_text(word)}</td>" for word in words)
            cells += "".join(f"<td class=n>{'-' if f is None else f'{f:.4f}'}</td>" for f in figures)
            rows.append(f"<tr>{cells}</tr>")
    if not rows:
        return ""
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
    return f"<h2>Requests, the worst and some at random</h2>{table}"


def _audit(memory: Memory) -> str:
    rows = []
    for entry in memory.audit()[:20]:
        at = datetime.datetime.fromtimestamp(entry["at_ms"] / 1000, datetime.UTC)
        rest = ", ".join(f"{k} {v}" for k, v in entry.items() if k not in ("at_ms", "what", "model", "who"))
        cells = (f"{at:%Y-%m-%d %H:%M}", entry["what"], entry["model"], entry["who"], rest)
        rows.append(f"<tr>{''.join(f'<td>{_text(str(cell))}</td>' for cell in cells)}</tr>")
    if not rows:
        return ""
    head = "<tr><th>when (UTC)</th><th>what</th><th>model</th><th>who</th><th></th></tr>"
    return f'<h2>Baselines</h2><div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _wide(svg: str) -> str:
    return f'<div class="wide">{svg}</div>'


def _text(text: str) -> str:
    return html.escape(text)
