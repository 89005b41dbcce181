"""The versions that `make locked` takes are those of pyproject.toml, and bring no CUDA."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Ours, and torch, which is installed before the others.
APART = {"amn-queue", "amn-queue-models", "torch"}


def locked() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for one in map(Requirement, (ROOT / "tests" / "dev.lock").read_text("utf-8").splitlines()):
        found.setdefault(one.name, []).append(one)
    return found


def needed(extra: str) -> Iterator[Requirement]:
    """What an extra brings by name, and the extras of ours that it names."""
    for one in map(Requirement, PROJECT["optional-dependencies"][extra]):
        yield one
        if one.name == "amn-queue":
            for inner in one.extras:
                yield from needed(inner)


def test_every_dependency_of_developers_is_locked_to_a_version_that_is_allowed() -> None:
    versions = locked()
    for one in (*map(Requirement, PROJECT["dependencies"]), *needed("dev")):
        if one.name not in APART:
            assert one.name in versions, f"{one.name} is not in tests/dev.lock: `make lock`"
            for exact in versions[one.name]:
                [version] = [specifier.version for specifier in exact.specifier]
                assert one.specifier.contains(version), f"{exact} is not {one}: `make lock`"


def test_the_lock_brings_neither_torch_nor_cuda() -> None:
    names = " ".join(locked())
    assert re.findall(r"nvidia\S*|\bcuda\S*|\btriton\S*|\btorch\S*|cupy\S*", names) == []
