"""Measured runs, kept line by line: what breaks off goes on where it was, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Rows:
    """A file of JSON lines.

    Attributes:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                try:
                    self._rows.append(json.loads(line))
                except json.JSONDecodeError:  # the last line of a run that was killed
                    continue

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, **key: object) -> bool:
        """Whether a row with these values is there."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one, in the file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        broken = self.path.is_file() and not self.path.read_text("utf-8").endswith("\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if broken and self.path.stat().st_size else "") + json.dumps(row) + "\n")
        self._rows.append(dict(row))
