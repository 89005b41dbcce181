"""The size of the house, counted: `make house`. tests/unit/house/test_house.py holds the limits."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("amn", "producer", "workers", "ops")
#: What is counted as code; shell is .ci/run and ops/setup_venv.
CODE = re.compile(r"\.(py|lua|c|h)$|^\.ci/run$|^ops/setup_venv$")


def files() -> list[Path]:
    """The files of code outside the tests."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(n) for n in names.splitlines() if CODE.search(n) and not n.startswith("tests/")]


def length(file: Path) -> int:
    """The lines of a file, with blank ones and docstrings."""
    return (ROOT / file).read_text("utf-8").count("\n")


def rooms() -> dict[str, int]:
    """The lines of each top-level folder, the root under `.`."""
    found: dict[str, int] = {}
    for file in files():
        room = file.parts[0] if len(file.parts) > 1 else "."
        found[room] = found.get(room, 0) + length(file)
    return found


def levels() -> dict[str, int]:
    """The number of modules in each package of the rooms, sub-packages not counted."""
    found: dict[str, int] = {}
    for file in files():
        if file.parts[0] in ROOMS and file.suffix == ".py" and file.name != "__init__.py":
            found[str(file.parent)] = found.get(str(file.parent), 0) + 1
    return found


def functions() -> Iterator[tuple[str, int]]:
    """Each function of the rooms with its length in lines."""
    for file in files():
        if file.parts[0] in ROOMS and file.suffix == ".py":
            for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{file}: {node.name}", (node.end_lineno or 0) - node.lineno + 1


@click.command()
def main() -> None:
    """Print the lines of each room, the fullest packages, the longest modules and functions."""
    found = rooms()
    for room, lines in sorted(found.items(), key=lambda item: -item[1]):
        click.echo(f"{lines:7,} lines  {room}")
    click.echo(f"{sum(found.values()):7,} lines outside the tests\n")
    for title, sizes in (
        ("modules", levels()),
        ("lines", {str(file): length(file) for file in files()}),
        ("lines", dict(functions())),
    ):
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
            click.echo(f"{size:7,} {title}  {name}")
        click.echo()


if __name__ == "__main__":
    main()
