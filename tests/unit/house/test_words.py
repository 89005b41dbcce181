"""One name has one meaning, and a docstring reads without the name that it explains."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("amn", "producer", "workers", "ops")
FRAGMENT = re.compile(r"(Of|As|The same|What|Which|Who|Whether|How|Where|When|And|Or)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))


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
