"""Measured runs, kept line by line: what breaks off goes on where it was, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

#: What two runs must have in common to be one. Date and load differ, and are kept with each row.
_SAME = ("machine", "processor", "cores", "system", "python", "numpy", "torch", "server", "commit")
_WHERE = "environment"


class Rows:
    """A file of JSON lines, all measured on one machine with one commit.

    Attributes:
        path: The file; it need not exist.

    Raises:
        ClickException: The file holds rows of another machine, version or commit, or of nobody knows which.
    """

    def __init__(self, path: Path, surroundings: Mapping[str, object]) -> None:
        self.path, self._surroundings = path, dict(surroundings)
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                try:
                    self._rows.append(json.loads(line))
                except json.JSONDecodeError:  # the last line of a run that was killed
                    continue
        for row in self._rows:
            self._check(row)

    @property
    def surroundings(self) -> dict[str, object]:
        """The environment of all rows: the dates of the first and the last, where they are not one."""
        dates = sorted({str(row[_WHERE]["date"]) for row in self._rows if "date" in row[_WHERE]})
        date = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else None
        return {**self._surroundings, **({"date": date} if date else {})}

    def _check(self, row: Mapping[str, Any]) -> None:
        kept = row.get(_WHERE, {})
        for name in _SAME:
            if kept.get(name) != self._surroundings.get(name):
                raise click.ClickException(
                    f"{self.path} has rows with {name} {kept.get(name, 'unknown')}, and this is "
                    f"{self._surroundings.get(name, 'unknown')}: they are not one run; remove the file, or "
                    f"give another folder with --out"
                )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, **key: object) -> bool:
        """Whether a row with these values is there."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one with its environment, in the file at once."""
        row = {**row, _WHERE: self._surroundings}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        broken = self.path.is_file() and not self.path.read_text("utf-8").endswith("\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if broken and self.path.stat().st_size else "") + json.dumps(row) + "\n")
        self._rows.append(row)
