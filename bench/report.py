"""The files of each measurement: NAME.json for programs, NAME.md for people, NAME*.svg beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

_T = TypeVar("_T")
Row = Mapping[str, Any]

#: Ours, and the others in the order in which they are drawn.
OURS_COLOUR, OTHER_COLOUR = "#c2410c", "#64748b"
COLOURS = ("#c2410c", "#0f766e", "#7c3aed", "#2563eb", "#64748b", "#a16207")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True, help="Folder."
)


def write(out: Path, name: str, report: Mapping[str, Any], *parts: str | Sequence[Row]) -> None:
    """Write NAME.md and NAME.json, and print the text: paragraphs, tables of rows, and the environment."""
    facts = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    texts = [part if isinstance(part, str) else table(part) for part in (*parts, f"{facts}.") if part]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text("\n\n".join(texts) + "\n", "utf-8")
    # The JSON comes last: it says that all is there.
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    click.echo("\n\n".join(texts))


def table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table, a column a name; the first column is text, the others are numbers."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---|" + "---:|" * (len(names) - 1))
    lines += ["| " + " | ".join(shown(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a figure with three digits or more; of a spread the median, and in brackets least and most."""
    if isinstance(value, Mapping):
        return f"{shown(value['median'])} ({shown(value['min'])}, {shown(value['max'])})"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def progress(items: Iterable[_T], name: str, count: int) -> Iterable[_T]:
    """Yield the items, with a bar and the time that is left on the terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, name, count, console=console, transient=True, update_period=0.5, disable=hidden)


def draw(path: Path, size: tuple[float, float], plot: Callable[[Any], None], columns: int = 1) -> None:
    """Let `plot` draw on one axis (or on an array of several), and save the figure as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "amn-queue", "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(1, columns, figsize=size)
        plot(axes)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
