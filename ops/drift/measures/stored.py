"""JSON of the judge's values: a dataclass is an object, an array a list, and what is not finite null."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np


def dumps(value: object) -> str:
    """One line."""
    return json.dumps(value, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.where(np.isfinite(value), value.astype(object), np.array(None)).tolist()
    return {one.name: getattr(value, one.name) for one in fields(value)}
