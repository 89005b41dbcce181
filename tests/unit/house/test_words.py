"""One name has one meaning, and a docstring reads without the name that it explains."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("amn", "producer", "workers", "ops")
FRAGMENT = re.compile(r"(Of|As|The same|What|Which|Who|Whether|How|Where|When|And|Or)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules(*rooms: str) -> list[tuple[str, ast.Module]]:
    paths = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))) for path in paths]


def public_names(module: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yields the classes of a module and its aliases of types, and says whether it is a class."""
    for node in module.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, True
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and re.match(r"[A-Z]\w*[a-z]", target.id):
                    yield target.id, False


def glossary() -> dict[str, list[str]]:
    """By word of the glossary: where names may hold it; [] for anywhere."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("## Glossary")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| **")]
    return {
        word: re.findall(r"`([\w/.]+)`", row[2] if len(row) > 2 else "")
        for row in rows
        for word in re.findall(r"\*\*([\w -]+)\*\*", row[0])
    }


def names_of(module: ast.Module) -> Iterator[str]:
    """Yields what functions, classes, arguments and variables are called."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_the_glossary_names_folders_that_exist() -> None:
    named = [place for places in glossary().values() for place in places]
    assert len(named) > 10
    assert [place for place in named if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("word", [word for word, places in glossary().items() if places])
def test_a_word_stands_in_names_of_its_rooms_alone(word: str) -> None:
    places, found = glossary()[word], set()
    for path, module in modules(*ROOMS):
        if not path.startswith(tuple(places)):
            for name in names_of(module):
                parts = {part.lower().removesuffix("s") for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
                found |= {f"{path}: {name}"} if word in parts else set()
    assert found == set()


def test_no_public_class_of_the_rooms_shares_its_name_with_another_class_or_alias() -> None:
    places, classes = defaultdict(set), set()
    for path, module in modules(*ROOMS):
        for name, is_class in public_names(module):
            places[name].add(path)
            classes |= {name} if is_class else set()
    assert {name: found for name, found in places.items() if len(found) > 1 and name in classes} == {}


@pytest.mark.parametrize("room", [*ROOMS, "bench"])
def test_no_docstring_begins_as_a_fragment(room: str) -> None:
    found = []
    for path, module in modules(room):
        for node in ast.walk(module):
            text = ast.get_docstring(node) if isinstance(node, Documented) else None
            if text and FRAGMENT.match(text):
                found.append(f"{path}: {text.splitlines()[0]}")
    assert found == []
