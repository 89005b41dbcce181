"""The files of each step: NAME.json for programs, NAME.md for people, NAME*.svg beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

_T = TypeVar("_T")

#: Ours, and the others in the order in which they are drawn.
OURS_COLOUR, OTHER_COLOUR = "#c2410c", "#64748b"
COLOURS = ("#c2410c", "#0f766e", "#7c3aed", "#2563eb", "#64748b", "#a16207")


def write(out: Path, name: str, report: Mapping[str, Any], text: str) -> None:
    """Writes NAME.md and NAME.json, and prints the text. The JSON comes last: it says that all is there."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, "utf-8")
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    click.echo(text)


def progress(items: Iterable[_T], name: str, count: int) -> Iterable[_T]:
    """The items, with a bar and the time that is left on the terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        items,
        name,
        count,
        console=console,
        transient=True,
        update_period=0.5,
        disable=not console.is_terminal,
    )


def facts(report: Mapping[str, Any]) -> str:
    """The environment in a sentence."""
    return ", ".join(f"{name} {value}" for name, value in report["environment"].items()) + "."


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def shown(values: Mapping[str, float], digits: int = 0) -> str:
    """Median, and in brackets least and most."""
    return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f}, {values['max']:,.{digits}f})"


def rows_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of figures and spreads as a table, a column a name."""

    def cell(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        return shown(value, 0 if value["median"] >= 100 else 3 if value["median"] < 10 else 1)

    return markdown(
        [name.replace("_", " ") for name in rows[0]], [[cell(v) for v in row.values()] for row in rows]
    )


def draw(path: Path, size: tuple[float, float], plot: Callable[[Any], None], columns: int = 1) -> None:
    """Lets `plot` draw on one axis (or on an array of several), and saves the figure as SVG."""
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
