"""The real worker, with a model that ends or stops its process on some requests.

Run as `python tests/deadly.py amn ...` in place of `python -m workers amn ...`. What a request does is
a word in its id: `segv` crashes in native code, `hang` waits for ever and lets other threads run,
`held` waits for ever and does not. AMN_TESTS_DEADLY names the kinds of workers that do so, if not all.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.commands import worker
from workers.engine import suspects
from workers.handlers.amn import AmnHandler
from workers.handlers.fallback import FallbackHandler
from workers.pool.settings import PoolSettings
from workers.shadow.handler import ShadowHandler


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlyPoolSettings(PoolSettings):
    """A pool of such workers."""

    fallback_entries_max: int = 20_000

    def command(self, kind: str, artifacts: Path) -> list[str]:
        words = PoolSettings.command(self, kind, artifacts)
        limit = ["--fallback-entries-max", str(self.fallback_entries_max)]
        return [words[0], __file__, *words[words.index("workers") + 1 :], *limit]


def _hold() -> None:
    """Sleeps in C, without giving the interpreter's lock away."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(3600)


def _hang() -> None:
    threading.Event().wait()  # under libfaketime, time.sleep raises


_DEEDS = {"segv": lambda: ctypes.string_at(0), "hang": _hang, "held": _hold}


def _make_deadly(handler: type[Any]) -> None:
    handle = handler.handle

    def deadly(self: Any, batch: Any) -> Any:
        for request in batch.requests:
            for word, deed in _DEEDS.items():
                if word in request.id:
                    deed()
        return handle(self, batch)

    handler.handle = deadly


if __name__ == "__main__":
    suspects.PAUSE_S = 1.0  # less than the five seconds that a person is given, and still a pause
    handlers = {"amn": AmnHandler, "fallback": FallbackHandler, "shadow": ShadowHandler}
    if sys.argv[1] in os.environ.get("AMN_TESTS_DEADLY", " ".join(handlers)):
        _make_deadly(handlers[sys.argv[1]])
    worker(prog_name="python -m workers")
