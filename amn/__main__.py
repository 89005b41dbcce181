"""The command `amn ...`, also as `python -m amn ...`; what it does belongs to the room above this one."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

#: Top-level names that other projects use too.
_ROOMS = ("producer", "workers", "ops")
_ADVICE = "rename or remove the other one, or give amn-queue a virtual environment of its own"


def main() -> None:
    """Runs the command line, unless another project's packages stand in the place of ours."""
    for text in strangers(Path(__file__).resolve().parents[1]):
        sys.exit(f"amn: {text}")
    import_module("ops.cli").main()


def strangers(ours: Path) -> Iterator[str]:
    """Yields an error for each package that would be imported in the place of one of ours.

    Args:
        ours: The folder that our packages are in.
    """
    hashes = _installed_hashes(ours)
    for name in _ROOMS:
        found = find_spec(name)
        if found is None or found.origin is None:
            yield f"the package {name} of amn-queue is not in {ours}; install amn-queue again"
            continue
        file = Path(found.origin).resolve()
        if file.parent.parent != ours:
            yield (
                f"`import {name}` finds {file.parent}, which is not the package of amn-queue in "
                f"{ours / name}; {_ADVICE}"
            )
        elif hashes.get(f"{name}/__init__.py", _hash(file)) != _hash(file):
            yield (
                f"{file} is not as amn-queue installed it: another distribution with a package {name} wrote "
                f"over it (`pip list` shows it); {_ADVICE}, and install amn-queue again"
            )


def _installed_hashes(ours: Path) -> dict[str, str]:
    """The hashes of our files by name, as they were installed; none for a checkout."""
    found = next(iter(metadata.distributions(name="amn-queue", path=[str(ours)])), None)
    files = (found.files if found is not None else None) or ()
    return {str(file): file.hash.value for file in files if file.hash is not None}


def _hash(file: Path) -> str:
    """The SHA-256 of a file, as wheels write it."""
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    main()
