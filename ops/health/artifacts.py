"""What a worker that starts on this machine would serve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ops.health.findings import FAILURE, OK, WARNING, Finding
from workers.pool.served import MANIFEST, identity

_WEIGHTS = "model.safetensors"
_MISSING, _ALTERED = "missing: ", "altered: "


def look(root: Path) -> dict[str, str]:
    """Ids by role; or what is wrong, after `missing: ` or `altered: `."""
    secondary = root / "fallback_secondary"
    return {
        "model": _identity(root / "production_model"),
        "fallback": _identity(root / "fallback_accuracy"),
        **({"secondary": _identity(secondary)} if secondary.exists() else {}),
        "bank": _identity(root / "reference_bank"),
        "policy": _policy(root),
    }


def judge(artifacts: Mapping[str, str], root: str) -> list[Finding]:
    """One finding for each that is wrong, or one good one."""
    if not artifacts:
        return [Finding(OK, "artifacts", "no worker of this host, and no --artifacts: not looked at")]
    wrong = [
        Finding(WARNING, name, f"{value}; workers on this machine would not start")
        if value.startswith(_MISSING)
        else Finding(FAILURE, name, f"{value}; workers on this machine refuse it: promote or roll back")
        for name, value in artifacts.items()
        if value.startswith((_MISSING, _ALTERED))
    ]
    return wrong or [Finding(OK, "artifacts", f"weights in {root} as their manifests say")]


def _identity(folder: Path) -> str:
    try:
        found = identity(folder)
        weights = folder / _WEIGHTS
        if weights.exists():
            wanted = json.loads((folder / MANIFEST).read_text("utf-8"))["sha256"]
            with weights.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    return f"{_ALTERED}{weights.resolve()} is not what its manifest describes"
        return found
    except (OSError, ValueError, KeyError) as error:
        return f"{_MISSING}{folder} ({type(error).__name__})"


def _policy(artifacts: Path) -> str:
    from amn.errors import AmnError
    from amn.gate.gain import load_calibration
    from amn.policy import DEFAULT, load_policy

    try:
        return load_policy(DEFAULT).policy_id(load_calibration(artifacts / "gate_calibration").calibration_id)
    except AmnError as error:
        return f"{_MISSING}{error}"
