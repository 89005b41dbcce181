"""This machine: the artifacts that a worker started here would serve, and its compiled loops."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from amn.manifest import files_sha256
from workers.pool.served import MANIFEST, identity

MISSING, _ALTERED, _MISMATCHED = "missing: ", "altered: ", "mismatched: "
#: Beginnings of the text that stands in the place of an id.
WRONG = (MISSING, _ALTERED, _MISMATCHED)
_FOLDERS = {"model": "production_model", "fallback": "fallback_accuracy"}
_FOLDERS |= {"secondary": "fallback_secondary", "bank": "reference_bank"}
_AGAIN = "install gcc and libc6-dev (or clang), then this package again (pip install --force-reinstall)"
#: Our top-level packages: names that other projects use too.
_PACKAGES = ("amn", "ops", "producer", "workers")
#: By the reason that the compiled loops are not used, what to do.
LOOPS = {
    "not built": (
        "this package is the wheel for any platform, or was installed without a C compiler; on x86-64 take "
        f"the wheel for Linux, or {_AGAIN}"
    ),
    "outdated": f"they were built from other sources, or for another system; {_AGAIN}",
    "processor": "this processor lacks AVX2 or FMA; run AMN workers on one that has both",
}


def read(root: Path) -> dict[str, str]:
    """Ids by role; where something is wrong, the error after `missing: `, `altered: ` or `mismatched: `."""
    found = {
        role: _identity(root / name)
        for role, name in _FOLDERS.items()
        if role != "secondary" or (root / name).exists()
    }
    return found | {"policy": _policy(root)}


def read_loops() -> str:
    """Returns the reason that the compiled loops are not used; empty when they are."""
    from amn.kernel.bindings import WHY

    return WHY


def read_neighbours() -> dict[str, list[str]]:
    """Other distributions by the package of ours whose name they use: one wrote over files of the other."""
    owners = metadata.packages_distributions()
    others = {name: sorted(set(owners.get(name, ())) - {"amn-queue"}) for name in _PACKAGES}
    return {name: found for name, found in others.items() if found}


def _identity(folder: Path) -> str:
    weights = folder / "model.safetensors"
    try:
        found = identity(folder)
        if weights.exists():
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            if files_sha256([weights]) != manifest["sha256"]:
                return f"{_ALTERED}{weights.resolve()} is not what its manifest describes"
        return found
    except (OSError, ValueError, KeyError) as error:
        return f"{MISSING}{folder} ({type(error).__name__})"


def _policy(root: Path) -> str:
    from amn.errors import AmnError
    from amn.gate.gain import load_calibration
    from amn.policy import DEFAULT, load_policy

    try:
        calibration = load_calibration(root / "gate_calibration")
    except AmnError as error:
        return f"{MISSING}{error}"
    fitted_for = {"production_model": calibration.amn, "fallback_accuracy": calibration.fallback}
    for link, model in fitted_for.items():
        found, name = _identity(root / link), f"gate_calibration ({calibration.calibration_id})"
        if not found.startswith((MISSING, _ALTERED)) and found != model:
            return f"{_MISMATCHED}{name} was fitted for {model}, {link} is {found}"
    return load_policy(DEFAULT).policy_id(calibration.calibration_id)
