"""The evaluation as a Markdown table and as one self-contained HTML page."""

from __future__ import annotations

import html
from typing import Any

from amn.evaluation.plots import cosine_plot, domain_plot, latency_plot, position_plot

Row = list[str]

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee3; --tint: #f5f7f9; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
       max-width: 1180px; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { color: var(--soft); max-width: 46rem; margin: .3rem 0 .8rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--tint); }
.err { color: var(--soft); font-size: .82em; } .up { color: #0a7a3d; } .down { color: #b3261e; }
.plots { display: grid; margin-top: 2rem;
         grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; }
"""


def page(result: dict[str, Any]) -> str:
    """One HTML page with tables and plots; it loads nothing from elsewhere."""
    plots = [cosine_plot(result), domain_plot(result), position_plot(result), latency_plot(result)]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Evaluation of next-vector models</title><style>{STYLE}</style></head><body>",
        "<h1>Next-vector models on the same windows</h1>",
        f"<p>{html.escape(introduction(result))}</p>",
        "<h2>Cosine with the true next vector</h2>",
        "<p>Mean &plusmn; standard error by article (cluster bootstrap).</p>",
        table(*cosine_rows(result)),
        "<h2>Gain over the context mean</h2>",
        "<p>Paired by window, 95 % interval by article. Green: above zero; red: below.</p>",
        table(*gain_rows(result, "context_mean")),
        "<h2>Gain over the last vector</h2>",
        table(*gain_rows(result, "last_vector")),
        f"<h2>Difference to {html.escape(result['reference'])}</h2>",
        "<p>A fallback helps on a slice only where this is above zero.</p>",
        table(*gain_rows(result, result["reference"])),
        "<div class='plots'>",
        *[plot for plot in plots if plot],
        "</div>",
        "<h2>Hits among the bank</h2>",
        f"<p>Share of windows whose true next vector is among the k nearest to the prediction, "
        f"hidden among {result['bank_vectors']:,} training vectors and the true next vectors of "
        "all other windows of the slice, those of the same article included.</p>",
        table(*hit_rows(result)),
        "<h2>Order and copying</h2>",
        "<p>Change of the mean cosine when the five vectors are shuffled or reversed, and how "
        "often the prediction is nearer to the last context vector than to the next one.</p>",
        table(*probe_rows(result)),
        "<h2>Latency</h2>",
        f"<p>In milliseconds a call, on {result['threads']} thread(s), folded weights.</p>",
        table(*latency_rows(result)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def introduction(result: dict[str, Any]) -> str:
    """What was judged on what."""
    slices = "; ".join(
        f"{name}: {figures['n']:,} windows of {figures['articles']} articles, coherence "
        f"{figures['coherence']:.3f}"
        for name, figures in result["slices"].items()
    )
    return (
        f"Data {result['data']['source']} ({result['data']['sha256'][:12]}). {slices}. The slice "
        "'train' is a sample of what the models were trained on; 'unseen' is a domain that "
        "none of them saw."
    )


def table(head: Row, rows: list[Row]) -> str:
    """An HTML table; cells are trusted markup made here."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def label(name: str, entry: dict[str, Any]) -> str:
    """Model name with its layout."""
    kind = "" if entry["layout"] == "baseline" else f" <span class='err'>{entry['layout']}</span>"
    return html.escape(name) + kind


def cosine_rows(result: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Cosine on every slice, OOD delta, size."""
    sides = list(result["slices"])
    rows = []
    for name, entry in result["models"].items():
        cells = [
            f"{entry['cosine'][side]['mean']:.4f} <span class='err'>&plusmn; "
            f"{entry['cosine'][side]['standard_error']:.4f}</span>"
            for side in sides
        ]
        size = f"{entry['parameters']:,}"
        rows.append([label(name, entry), size, *cells, f"{entry['ood_delta']:+.4f}"])
    return ["model", "parameters", *sides, "OOD delta"], rows


def gain_rows(result: dict[str, Any], other: str) -> tuple[Row, list[Row]]:
    """Paired differences to `other` on every slice."""
    sides = list(result["slices"])
    rows = [
        [label(name, entry), *[gain_cell(entry["gains"][side][other]) for side in sides]]
        for name, entry in result["models"].items()
        if name != other
    ]
    return ["model", *sides], rows


def gain_cell(gain: dict[str, float]) -> str:
    """Mean and interval, coloured when the interval excludes zero."""
    kind = "up" if gain["low"] > 0 else "down" if gain["high"] < 0 else ""
    interval = f"<span class='err'>[{gain['low']:+.4f}, {gain['high']:+.4f}]</span>"
    return f"<span class='{kind}'>{gain['mean']:+.4f}</span> {interval}"


def hit_rows(result: dict[str, Any]) -> tuple[Row, list[Row]]:
    """hit@k on test and unseen."""
    first = next(iter(result["models"].values()))["hits"]
    head = ["model", *[f"{side} {k}" for side, values in first.items() for k in values]]
    rows = [
        [
            label(name, entry),
            *[f"{value:.3f}" for side in entry["hits"].values() for value in side.values()],
        ]
        for name, entry in result["models"].items()
    ]
    return head, rows


def probe_rows(result: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Order sensitivity and copying on test and unseen."""
    head = ["model"]
    for side in ("test", "unseen"):
        head += [f"{side} shuffled", "reversed", "nearer to last", "cosine to last"]
    rows = []
    for name, entry in result["models"].items():
        row = [label(name, entry)]
        for side in ("test", "unseen"):
            probe = entry["probes"][side]
            row += [f"{probe['shuffled']:+.4f}", f"{probe['reversed']:+.4f}"]
            row += [f"{probe['nearer_to_last_share']:.1%}", f"{probe['cosine_to_last']:.3f}"]
        rows.append(row)
    return head, rows


def latency_rows(result: dict[str, Any]) -> tuple[Row, list[Row]]:
    """p50 / p95 by batch size."""
    timed = {n: e for n, e in result["models"].items() if "latency" in e}
    if not timed:
        return ["model", "not measured"], []
    sizes = [row["batch"] for row in next(iter(timed.values()))["latency"]]
    head = ["model", *[f"batch {size}, p50 / p95" for size in sizes], "contexts/s at best"]
    rows = []
    for name, entry in timed.items():
        cells = [f"{r['latency_ms_p50']:.3f} / {r['latency_ms_p95']:.3f}" for r in entry["latency"]]
        best = max(row["contexts_per_s"] for row in entry["latency"])
        rows.append([label(name, entry), *cells, f"{best:,.0f}"])
    return head, rows


def markdown_table(result: dict[str, Any]) -> str:
    """The main table for terminals and documents."""
    sides = list(result["slices"])
    lines = [
        "| model | parameters | "
        + " | ".join(sides)
        + " | OOD delta | gain over context mean: test, unseen |",
        "|---|---:|" + "---:|" * (len(sides) + 2),
    ]
    for name, entry in result["models"].items():
        cells = [
            f"{entry['cosine'][s]['mean']:.4f} ± {entry['cosine'][s]['standard_error']:.4f}" for s in sides
        ]
        gains = [entry["gains"][side].get("context_mean") for side in ("test", "unseen")]
        gain = ", ".join(f"{g['mean']:+.4f} [{g['low']:+.4f}, {g['high']:+.4f}]" for g in gains if g)
        lines.append(
            f"| {name} ({entry['layout']}) | {entry['parameters']:,} | "
            + " | ".join(cells)
            + f" | {entry['ood_delta']:+.4f} | {gain or '-'} |"
        )
    counts = ", ".join(f"{s} n = {result['slices'][s]['n']:,}" for s in sides)
    return "\n".join(lines) + f"\n\n{counts}; ± is one standard error by article."
