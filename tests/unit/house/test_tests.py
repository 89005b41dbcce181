"""Tests of different folders can be named in one call of pytest."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]


def test_no_test_imports_from_a_conftest() -> None:
    for path in TESTS.rglob("*.py"):
        imported = {
            node.module
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert "conftest" not in imported, f"{path}: move what is imported into a module of its own"


def test_no_two_modules_of_tests_outside_packages_share_a_name() -> None:
    names = Counter(
        path.name
        for path in TESTS.rglob("*.py")
        if path.name not in ("conftest.py", "__main__.py") and not (path.parent / "__init__.py").exists()
    )
    assert [name for name, count in names.items() if count > 1] == []
