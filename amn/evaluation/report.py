"""The evaluation as a Markdown table and as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from amn.evaluation import plots

Row = list[str]
#: Title, explanation, names of the columns, and rows of a table.
Section = tuple[str, str, Row, list[Row]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2.5rem auto; padding: 0 1.25rem; }
p, small { color: #5b6570; max-width: 46rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid #d9dee3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .up { color: #0a7a3d; } .down { color: #b3261e; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; }
"""


def page(result: dict[str, Any]) -> str:
    """One HTML page with tables and plots; it loads nothing from elsewhere."""
    models, sides = result["models"], list(result["slices"])
    drawn = [plots.cosine_plot(models, sides), plots.domain_plot(models)]
    drawn += [plots.position_plot(models), plots.latency_plot(models)]
    tables = "\n".join(
        f"<h2>{title}</h2><p>{note}</p><div class='scroll'>{_html_table(head, rows)}</div>"
        for title, note, head, rows in sections(result)
    )
    return f"""<!doctype html><html lang='en'><head><meta charset='utf-8'>
<title>Evaluation of next-vector models</title><style>{STYLE}</style></head><body>
<h1>Next-vector models on the same windows</h1><p>{html.escape(introduction(result))}</p>
{tables}
<div class='plots'>{"".join(drawn)}</div></body></html>
"""


def introduction(result: dict[str, Any]) -> str:
    """The data, and its slices."""
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


def sections(result: dict[str, Any]) -> Iterator[Section]:
    """All tables of the page; their cells are trusted markup made here."""
    models, sides = result["models"], list(result["slices"])
    labels = {
        name: f"{html.escape(name)} <small>{'' if e['layout'] == 'baseline' else e['layout']}</small>"
        for name, e in models.items()
    }
    yield (
        "Cosine with the true next vector",
        "Mean &plusmn; standard error by article (cluster bootstrap).",
        ["model", "parameters", *sides, "OOD delta"],
        [
            [labels[name], f"{e['parameters']:,}", *_cosines(e, sides), f"{e['ood_delta']:+.4f}"]
            for name, e in models.items()
        ],
    )
    gained = "Paired by window, 95 % interval by article. Green: above zero; red: below."
    for other in dict.fromkeys(("context_mean", "last_vector", result["reference"])):
        rows = [
            [labels[name], *(_gain_cell(e["gains"][side][other]) for side in sides)]
            for name, e in models.items()
            if name != other
        ]
        yield f"Gain over {html.escape(other)}", gained, ["model", *sides], rows
    first = next(iter(models.values()))["hits"]
    yield (
        "Hits among the bank",
        "Share of windows whose true next vector is among the k nearest to the prediction, hidden among "
        f"{result['bank_vectors']:,} training vectors and the true next vectors of all other windows.",
        ["model", *(f"{side} {k}" for side, values in first.items() for k in values)],
        [
            [labels[name], *(f"{value:.3f}" for side in e["hits"].values() for value in side.values())]
            for name, e in models.items()
        ],
    )
    columns = ("shuffled", "reversed", "nearer_to_last_share", "cosine_to_last")
    yield (
        "Order and copying",
        "Change of the mean cosine when the five vectors are shuffled or reversed; how often the "
        "prediction is nearer to the last context vector than to the next one; its cosine with it.",
        ["model", *(f"{side} {c.replace('_', ' ')}" for side in first for c in columns)],
        [
            [labels[name], *(f"{e['probes'][side][c]:+.4f}" for side in first for c in columns)]
            for name, e in models.items()
        ],
    )
    yield _latency(result, labels)


def _latency(result: dict[str, Any], labels: dict[str, str]) -> Section:
    timed = {name: e["latency"] for name, e in result["models"].items() if "latency" in e}
    sizes = [row["batch"] for row in next(iter(timed.values()), [])]
    rows = [
        [
            labels[name],
            *(f"{row['latency_ms_p50']:.3f} / {row['latency_ms_p95']:.3f}" for row in calls),
            f"{max(row['contexts_per_s'] for row in calls):,.0f}",
        ]
        for name, calls in timed.items()
    ]
    head = ["model", *(f"batch {size}, p50 / p95" for size in sizes), "contexts/s at best"]
    note = f"In milliseconds a call, on {result['threads']} thread(s), folded weights."
    return "Latency", note if timed else "Not measured.", head, rows


def _cosines(entry: dict[str, Any], sides: list[str]) -> list[str]:
    figures = [entry["cosine"][side] for side in sides]
    return [f"{one['mean']:.4f} ± {one['standard_error']:.4f}" for one in figures]


def gain_text(gain: dict[str, float]) -> str:
    """Mean and interval of a gain."""
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _gain_cell(gain: dict[str, float]) -> str:
    kind = "up" if gain["low"] > 0 else "down" if gain["high"] < 0 else ""
    return f"<span class='{kind}'>{gain_text(gain)}</span>"


def _html_table(head: Row, rows: list[Row]) -> str:
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def markdown_table(result: dict[str, Any]) -> str:
    """The main table for terminals and documents."""
    sides = list(result["slices"])
    rows = []
    for name, entry in result["models"].items():
        gains = [entry["gains"][side].get("context_mean") for side in ("test", "unseen")]
        gain = ", ".join(gain_text(one) for one in gains if one) or "-"
        first = [f"{name} ({entry['layout']})", f"{entry['parameters']:,}"]
        rows.append([*first, *_cosines(entry, sides), f"{entry['ood_delta']:+.4f}", gain])
    counts = ", ".join(f"{s} n = {result['slices'][s]['n']:,}" for s in sides)
    head = ["model", "parameters", *sides, "OOD delta", "gain over context mean: test, unseen"]
    return f"{markdown(head, rows)}\n\n{counts}; ± is one standard error by article."
