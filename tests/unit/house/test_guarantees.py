"""docs/guarantees.md names tests that exist; and two guarantees that are about the source itself."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("amn", "producer", "workers", "ops")
TEXT = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_the_table_names_exists(file: str, name: str) -> None:
    assert name in functions(file)


def test_every_row_names_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 12 + 14 + 15
    assert all(re.search(r"`tests/[\w/]+\.py::\w+`", row) for row in rows)


def sources() -> list[Path]:
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "msgpack_numpy"}


def test_nothing_here_unpickles() -> None:
    """Neither by itself nor by a library that does unless it is told not to; its errors may be caught."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNPICKLING, path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLING:
                assert node.attr.endswith("Error"), path
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert not call.startswith("torch.load(") or "weights_only=True" in call, path
                assert "allow_pickle=True" not in call, path


def test_every_room_says_that_it_is_typed() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").is_file()] == []
