"""Waits for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Returns what the condition gives once that is true; fails the test when it takes too long."""
    give_up_at_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < give_up_at_s, f"not within {timeout_s:g} s"
        time.sleep(0.01)
    return found
