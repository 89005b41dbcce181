"""Output to a person: progress and notes on standard error, results on standard output.

Whatever is printed goes through here, and here text is data: no string is read as markup, and none can
give orders to the terminal. Only `styled` makes something bold or red.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Self, TypeVar

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from amn.output import plain, strict_json

_T = TypeVar("_T")
#: A pipe or a file has no width; tables must not be cut for it.
_PIPED_WIDTH = 160
_REDRAW_S = 0.2
#: On a narrower terminal a bar leaves out what says least, so that no number is cut.
_BAR_WIDTH_MIN = 100


class Screen(Console):
    """A console to which every string is data."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Renders as the base does, with controls as visible text, whoever made the renderable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text, lines=True), segment.style)


class DataTable(Table):
    """A table without lines, whose cells are data and stay on one line each, unless they are too long.

    A header that ends in ">" is that of a column of numbers.
    """

    def __init__(self, *headers: str, **options: Any) -> None:
        super().__init__(**{"box": None, "pad_edge": False, **options})
        for header in headers:
            self.add_column(
                plain(header.removesuffix(">")), justify="right" if header[-1:] == ">" else "left"
            )

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Adds a row; whole numbers get commas, None is a dash, and everything else becomes text."""
        super().add_row(*map(_cell, cells), **options)

    def filled(self, rows: Iterable[Iterable[Any]]) -> Self:
        """Return the table with these rows added."""
        for row in rows:
            self.add_row(*row)
        return self


def _cell(value: Any) -> Text | str:
    if isinstance(value, Text):
        return value
    if value is None:
        return "-"
    return f"{value:,}" if type(value) is int else plain(value)


def err() -> Screen:
    """For progress and notes; made anew, so that tests and redirections see the current stream."""
    return Screen(stderr=True, soft_wrap=True)


def out(file: IO[str] | None = None) -> Screen:
    """For results that a person reads."""
    screen = Screen(file=file)
    if not screen.is_terminal:
        screen.width = _PIPED_WIDTH
    return screen


def styled(text: object, style: str) -> Text:
    """Return one line of data in a style of ours."""
    return Text(plain(text), style=style)


def say(text: str, *, err: bool = False) -> None:
    """Prints one line; line ends and controls in it are escaped."""
    click.echo(plain(text), err=err)


def say_json(value: object, *, indent: int | None = None) -> None:
    """Prints the one object of `--json`."""
    click.echo(strict_json(value, indent=indent))


def answer(as_json: bool, found: _T, draw: Callable[[_T], object], *, indent: int | None = None) -> None:
    """Prints what a command found: as the one object of `--json`, or drawn for a person."""
    say_json(found, indent=indent) if as_json else draw(found)


class _RateColumn(ProgressColumn):
    """The units of a second, of the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


class Bar:
    """A progress bar on standard error, as a context manager; it begins anew with each step.

    It draws only when it is told to, and a few times a second: a drawing thread would take the
    interpreter's lock from the thread that receives answers, and would show in the latencies.
    """

    def __init__(self, unit: str) -> None:
        screen = err()
        wide = screen.width >= _BAR_WIDTH_MIN
        columns: tuple[ProgressColumn, ...] = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            *((BarColumn(bar_width=20),) if wide else ()),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn(unit, markup=False),
            _RateColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False),
            *((TimeElapsedColumn(),) if wide else ()),
            TextColumn("left", markup=False),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        self.print, self.visible = screen.print, screen.is_terminal
        self._progress = Progress(
            *columns, console=screen, auto_refresh=False, transient=True, disable=not self.visible
        )
        self._task = self._progress.add_task("", total=None, note="")
        self._drawn_at_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def draw(self, step: str, done: int, total: int, note: str = "") -> None:
        """Shows how far a step has come."""
        now_s, progress = time.monotonic(), self._progress
        if progress.tasks[0].description != step:
            # What was done before has no part in the rate.
            progress.reset(self._task, description=step, total=total, completed=done)
        elif now_s - self._drawn_at_s < _REDRAW_S and done < total:
            return
        self._drawn_at_s = now_s
        progress.update(self._task, completed=done, note=note)
        progress.refresh()
