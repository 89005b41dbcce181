"""The record of an evaluation as text: the main table, one self-contained HTML page, and a model card.

Templates are beside this file. The card has the headings of the specification's card, and its numbers
beside the measured ones; the front matter is Hugging Face model-card metadata.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from amn.errors import DataError
from amn.evaluation import plots
from amn.files import write_whole
from amn.model import checkpoint
from amn.output import strict_json

CARD, PAGE = Path(__file__).with_name("card.md"), Path(__file__).with_name("page.html")
#: Figures of the specification's card of AMN, by slice, quoted beside ours.
SPECIFIED = {"test": "0.5597 ± 0.0198", "unseen": "0.6375"}


def write_evaluation(result: dict[str, Any], out: Path) -> None:
    """Writes the record as `evaluation.json` and the page as `evaluation.html`."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "evaluation.json", strict_json(result, indent=2) + "\n")
    write_whole(out / "evaluation.html", page(result))


def page(result: dict[str, Any]) -> str:
    """One HTML page with tables and plots; it loads nothing from elsewhere."""
    models, data = result["models"], result["data"]
    tables = {
        key: _figures({name: entry[key] for name, entry in models.items() if key in entry})
        for key in ("gains", "domains", "hits", "probes", "latency")
    }
    return Template(PAGE.read_text("utf-8")).substitute(
        tables,
        source=html.escape(data["source"]),
        sha256=data["sha256"][:12],
        bank=f"{result['bank_vectors']:,}",
        threads=result["threads"],
        main=_html_table(*main_table(result)),
        slices=_figures(result["slices"]),
        plots="".join(plots.all_plots(models)),
    )


def _figures(columns: dict[str, Any]) -> str:
    """A table with a column for each of these, and a row for each of their figures."""
    shown = {name: dict(flat(figures)) for name, figures in columns.items()}
    rows = dict.fromkeys(row for figures in shown.values() for row in figures)
    cells = [[row, *(figures.get(row, "-") for figures in shown.values())] for row in rows]
    return _html_table(["", *shown], cells)


def flat(figures: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The figures of nested dicts and lists, each with the names that lead to it."""
    if isinstance(figures, list):
        rows = [dict(row) for row in figures if isinstance(row, dict)]
        figures = {f"batch {row.pop('batch')}": row for row in rows}
    if isinstance(figures, dict) and "mean" not in figures:
        for key, value in figures.items():
            yield from flat(value, f"{name} {key.replace('_', ' ')}".strip())
    else:
        yield name, figures


def main_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that is printed, and the first one of the page."""
    sides, rows = list(result["slices"]), []
    for name, entry in result["models"].items():
        gains = [entry["gains"][side].get("context_mean") for side in ("test", "unseen")]
        first = [f"{name} ({entry['layout']})", f"{entry['parameters']:,}"]
        cosines = [cosine_text(entry["cosine"][side]) for side in sides]
        gain = ", ".join(gain_text(one) for one in gains if one) or "-"
        rows.append([*first, *cosines, f"{entry['ood_delta']:+.4f}", gain])
    return ["model", "parameters", *sides, "OOD delta", "gain over context mean: test, unseen"], rows


def counts(result: dict[str, Any]) -> str:
    """The number of windows of each slice."""
    sizes = ", ".join(f"{side} n = {one['n']:,}" for side, one in result["slices"].items())
    return f"{sizes}; ± is one standard error by article."


def cosine_text(figures: Mapping[str, float]) -> str:
    """Mean and standard error of a cosine."""
    return f"{figures['mean']:.4f} ± {figures['standard_error']:.4f}"


def gain_text(gain: Mapping[str, float]) -> str:
    """Mean and interval of a gain."""
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)]
    lines += ["".join(map(_html_cell, row)) for row in rows]
    return f"<div class='wide'><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>\n"


def _html_cell(cell: Any) -> str:
    if isinstance(cell, dict):
        kind = "up" if cell["low"] > 0 else "down" if cell["high"] < 0 else ""
        return f"<td class='{kind}'>{gain_text(cell)}</td>"
    return f"<td>{f'{cell:.4f}' if isinstance(cell, float) else html.escape(str(cell))}</td>"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def markdown_table(result: dict[str, Any]) -> str:
    """The main table for terminals and documents."""
    return f"{markdown(*main_table(result))}\n\n{counts(result)}"


def card_of(path: Path, evaluation: Path) -> str:
    """The card of a checkpoint, with the figures of an `evaluation.json` that judges it."""
    manifest = checkpoint.load(path).manifest
    try:
        result = json.loads(evaluation.read_text("utf-8"))
        entry = result["models"][manifest.model_id]
    except (OSError, ValueError) as error:
        raise DataError(f"{evaluation} cannot be read ({error}); run `amn evaluate`") from error
    except KeyError as error:
        name = manifest.model_id
        raise DataError(f"{evaluation} does not judge {name}; evaluate this checkpoint first") from error
    counts = manifest.data.get("windows", {}).items()
    return CARD.read_text("utf-8").format(
        m=manifest,
        entry=entry,
        probe=entry["probes"]["test"],
        source=manifest.data.get("source", "unknown"),
        data_sha256=manifest.data.get("sha256", "unknown"),
        windows=", ".join(f"{name} {count:,}" for name, count in counts) or "unknown",
        recipe=markdown(["setting", "value"], manifest.training.items()),
        cosines=_cosines(entry, result["models"]),
        timing=_timing(entry.get("latency", []), result["threads"]),
        strengths="\n".join(_strengths(entry)),
    )


def _cosines(entry: dict[str, Any], models: dict[str, Any]) -> str:
    mean, last = (models[name]["cosine"] for name in ("context_mean", "last_vector"))
    head = ["slice", "cosine", "context mean", "last vector", "windows / articles", "AMN as specified"]
    rows = []
    for side, figures in entry["cosine"].items():
        baselines = [f"{mean[side]['mean']:.4f}", f"{last[side]['mean']:.4f}"]
        counts = f"{figures['n']:,} / {figures['articles']}"
        rows.append([side, cosine_text(figures), *baselines, counts, SPECIFIED.get(side, "-")])
    return markdown(head, rows)


def _timing(latency: list[dict[str, float]], threads: int) -> str:
    forms = {"batch": "d", "latency_ms_p50": ".3f", "latency_ms_p95": ".3f", "contexts_per_s": ",.0f"}
    rows = [[f"{row[name]:{form}}" for name, form in forms.items()] for row in latency]
    title = f"\n### Latency (CPU, {threads} thread; specification of AMN: 0.62 ms P50 on MPS)\n"
    return title + markdown(["batch", "P50 ms", "P95 ms", "contexts/s"], rows) if rows else ""


def _strengths(entry: dict[str, Any]) -> list[str]:
    """The verdicts that the intervals support, and nothing else."""
    gains = {side: found["context_mean"] for side, found in entry["gains"].items() if side != "train"}
    words = {(True, False): "above", (False, True): "below", (False, False): "not apart from"}
    return [
        f"- {side}: {words[gain['low'] > 0, gain['high'] < 0]} the context mean, {gain_text(gain)}"
        for side, gain in gains.items()
    ]
