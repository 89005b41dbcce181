"""The links of the artifacts folder: a worker that starts now would serve their targets.

Models, banks and calibrations are reached by links (`production_model`, `fallback_accuracy`, ...).
A promotion moves a link while workers run; what they loaded stays what they serve.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

MANIFEST = "manifest.json"
#: Links that a pool reads, also when they are missing: then the worker says so.
STANDARD = ("production_model", "reference_bank", "fallback_accuracy", "fallback_secondary")
_FALLBACKS = frozenset({"fallback_accuracy", "fallback_secondary"})
#: Links that a kind does not read. All others concern it, also ones that are not known here.
_FOREIGN = {
    "amn": _FALLBACKS,
    "fallback": frozenset({"production_model", "reference_bank", "fallback_secondary"}),
}


class Served(NamedTuple):
    """The artifacts that a worker was started with.

    Attributes:
        links: (name, where it leads, when its manifest was written, in ns), by name.
        restart: Number of the rolling restart that asked for it.
    """

    links: tuple[tuple[str, str, int], ...] = ()
    restart: int = 0

    def of(self, kind: str) -> tuple[object, ...]:
        """Workers of one kind with the same value need not be replaced."""
        foreign = _FOREIGN.get(kind, frozenset())
        return (self.restart, *(link for link in self.links if link[0] not in foreign))


def read_links(root: Path) -> Served:
    """Reads the links of `root`."""
    try:
        names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError:
        names = []
    found = [(name, os.path.realpath(root / name), _written_ns(root / name)) for name in names]
    # One that nothing was written to is a folder of many models, a history, or a link to nothing.
    return Served(tuple(link for link in found if link[2]))


def pin(served: Served, root: Path, folder: Path) -> Path:
    """Makes `folder` a copy of `root` whose links do not move; returns it. Idempotent."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: os.path.realpath(root / name) for name in STANDARD}
    targets |= {name: target for name, target, _ in served.links}
    for name, target in targets.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return folder


def identity(folder: Path) -> str:
    """The id of a model or bank folder in answers: `name@sha256[:12]`, or the bank's id.

    Raises:
        OSError, ValueError, KeyError: It has no manifest that says so.
    """
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if "bank_id" in manifest:
        return str(manifest["bank_id"])
    return f"{manifest['name']}@{manifest['sha256'][:12]}"


def served_by(model: Path, bank: Path | None) -> dict[str, str]:
    """The ids that a worker says it serves."""
    return {"model": identity(model)} | ({"bank": identity(bank)} if bank else {})


def _written_ns(name: Path) -> int:
    """The time at which the artifact of this name was written; 0 when there is none."""
    try:
        if name.is_dir():
            return (name / MANIFEST).stat().st_mtime_ns
        return name.stat().st_mtime_ns if name.is_symlink() else 0
    except OSError:
        return 0
