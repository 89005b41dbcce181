"""The record of an evaluation as tables: Markdown for terminals, and one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amn.evaluation import plots
from amn.files import write_whole
from amn.output import strict_json

TIMES = ("latency_ms_p50", "latency_ms_p95", "contexts_per_s")
#: A text, or a gain with its interval.
Cell = str | Mapping[str, float]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2.5rem auto; padding: 0 1.25rem; }
p { color: #5b6570; max-width: 46rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid #d9dee3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .up { color: #0a7a3d; } .down { color: #b3261e; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; }
"""


class Table(NamedTuple):
    """A table of the page."""

    title: str
    note: str
    head: list[str]
    rows: list[list[Cell]]


def write_evaluation(result: dict[str, Any], out: Path) -> None:
    """Writes the record as `evaluation.json` and the page as `evaluation.html`."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "evaluation.json", strict_json(result, indent=2) + "\n")
    write_whole(out / "evaluation.html", page(result))


def page(result: dict[str, Any]) -> str:
    """One HTML page with tables and plots; it loads nothing from elsewhere."""
    tables = "".join(map(_html_table, tables_of(result)))
    data = f"Data {result['data']['source']} ({result['data']['sha256'][:12]})."
    drawn = "".join(plots.all_plots(result["models"]))
    return f"""<!doctype html><html lang='en'><head><meta charset='utf-8'>
<title>Evaluation of next-vector models</title><style>{STYLE}</style></head><body>
<h1>Next-vector models on the same windows</h1><p>{html.escape(data)}</p>
{tables}<div class='plots'>{drawn}</div></body></html>
"""


def main_table(result: dict[str, Any]) -> Table:
    """The table that is printed, and the first one of the page."""
    sides = list(result["slices"])
    rows: list[list[Cell]] = []
    for name, entry in result["models"].items():
        gains = [entry["gains"][side].get("context_mean") for side in ("test", "unseen")]
        first = [f"{name} ({entry['layout']})", f"{entry['parameters']:,}"]
        cosines = [cosine_text(entry["cosine"][side]) for side in sides]
        gain = ", ".join(gain_text(one) for one in gains if one) or "-"
        rows.append([*first, *cosines, f"{entry['ood_delta']:+.4f}", gain])
    head = ["model", "parameters", *sides, "OOD delta", "gain over context mean: test, unseen"]
    note = "Mean ± standard error by article (cluster bootstrap)."
    return Table("Cosine with the true next vector", note, head, rows)


def tables_of(result: dict[str, Any]) -> Iterator[Table]:
    """All tables of the page."""
    yield main_table(result)
    models, sides = result["models"], list(result["slices"])
    note = "Paired by window, 95 % interval by article. Green: above zero; red: below."
    for other in dict.fromkeys(("context_mean", "last_vector", result["reference"])):
        gains = {name: e["gains"] for name, e in models.items() if name != other}
        rows = [[name, *(gain[side][other] for side in sides)] for name, gain in gains.items()]
        yield Table(f"Gain over {other}", note, ["model", *sides], rows)
    yield _flat(
        "Hits among the bank",
        "Share of windows whose true next vector is among the k nearest to the prediction, hidden among "
        f"{result['bank_vectors']:,} training vectors and the true next vectors of all other windows.",
        {name: e["hits"] for name, e in models.items()},
        ".3f",
    )
    yield _flat(
        "Order and copying",
        "Change of the mean cosine when the five vectors are shuffled or reversed; how often the "
        "prediction is nearer to the last context vector than to the next one; its cosine with it.",
        {name: e["probes"] for name, e in models.items()},
        "+.4f",
    )
    yield _flat(
        "Latency",
        f"A call with folded weights on {result['threads']} thread(s); nothing where it was not measured.",
        {
            name: {f"batch {row['batch']}": {key: row[key] for key in TIMES} for row in e["latency"]}
            for name, e in models.items()
            if "latency" in e
        },
        ",.3f",
    )
    note = "The slice 'train' is a sample of what the models were trained on; none of them saw 'unseen'."
    yield _flat("Slices", note, {name: {"": one} for name, one in result["slices"].items()}, ".3f")


def _flat(title: str, note: str, nested: dict[str, Any], form: str) -> Table:
    """A table of the numbers of two levels of dicts; lists in them are left out."""
    columns = {
        name: {
            f"{group} {key}".replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:{form}}"
            for group, figures in groups.items()
            for key, value in figures.items()
            if not isinstance(value, list)
        }
        for name, groups in nested.items()
    }
    head = ["", *next(iter(columns.values()), {})]
    return Table(title, note, head, [[name, *cells.values()] for name, cells in columns.items()])


def cosine_text(figures: Mapping[str, float]) -> str:
    """Mean and standard error of a cosine."""
    return f"{figures['mean']:.4f} ± {figures['standard_error']:.4f}"


def gain_text(gain: Mapping[str, float]) -> str:
    """Mean and interval of a gain."""
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _html_table(table: Table) -> str:
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in table.head)]
    lines += ["".join(map(_html_cell, row)) for row in table.rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    title, note = html.escape(table.title), html.escape(table.note)
    return f"<h2>{title}</h2><p>{note}</p><div class='scroll'><table>{body}</table></div>\n"


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    kind = "up" if cell["low"] > 0 else "down" if cell["high"] < 0 else ""
    return f"<td class='{kind}'>{gain_text(cell)}</td>"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def markdown_table(result: dict[str, Any]) -> str:
    """The main table for terminals and documents."""
    table = main_table(result)
    counts = ", ".join(f"{side} n = {one['n']:,}" for side, one in result["slices"].items())
    return f"{markdown(table.head, table.rows)}\n\n{counts}; ± is one standard error by article."
