"""A release begins with a clean tree, a version of its own and a changelog that says what is in it."""

from __future__ import annotations

import re

import pytest
from release import faults

CUT = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-31

### Added
- A thing.

## [0.1.0] - 2026-11-30
"""


def test_a_changelog_that_was_cut_is_well() -> None:
    assert faults("0.2.0", CUT, "v0.1.0\n", "") == []


@pytest.mark.parametrize(
    ("version", "changelog", "tags", "changed", "said"),
    [
        ("0.2.0", CUT, "v0.1.0\nv0.2.0\n", "", "tag v0.2.0 exists"),
        ("0.3.0", CUT, "", "", r"\[Unreleased\], then \[0.3.0\]"),
        ("0.2.0", CUT.replace(" - 2027-01-31", ""), "", "", "no date"),
        ("0.2.0", CUT.replace("[Unreleased]\n", "[Unreleased]\n- New.\n"), "", "", "move them to"),
        ("0.2.0", CUT, "", " M README.md\n", "commit or remove"),
    ],
)
def test_what_is_not_settled_is_named(
    version: str, changelog: str, tags: str, changed: str, said: str
) -> None:
    [fault] = faults(version, changelog, tags, changed)
    assert re.search(said, fault)
