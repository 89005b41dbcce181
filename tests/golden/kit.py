"""Reads docs/wire-fixtures.json, as a client in any language would."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parents[2] / "docs" / "wire-fixtures.json"
KIT = json.loads(FILE.read_text("utf-8"))
FIXTURES: list[dict[str, Any]] = KIT["fixtures"]


def payload(fixture: dict[str, Any]) -> bytes:
    """The bytes of a fixture, whose pieces are base64 and numbers of zeros."""
    return b"".join(bytes(one) if type(one) is int else base64.b64decode(one) for one in fixture["bytes"])


def array(described: dict[str, Any]) -> NDArray[Any]:
    """The array that a bin holds."""
    dtype = np.dtype("<" + described["dtype"])
    if "values" in described:
        return np.array(described["values"], dtype)
    made = np.zeros(described["shape"], dtype)
    for *place, value in described["nonzero"]:
        made[tuple(place)] = value
    return made
