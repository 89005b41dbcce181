"""What a person sees: progress and tables on standard error, results on standard output."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: A pipe or a file has no width; tables must not be cut for it.
_PIPED_WIDTH = 160


def err() -> Console:
    """For progress and notes; made anew, so that tests and redirections see the current stream."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def out(file: IO[str] | None = None) -> Console:
    """For results that a person reads."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def progress(unit: str) -> Progress:
    """A bar on standard error.

    It draws only when it is told to: a drawing thread would take the interpreter's lock from the
    thread that receives answers, and would show in the latencies.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err(),
        auto_refresh=False,
        transient=True,
    )
