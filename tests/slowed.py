"""The real worker, whose model takes its time: `python tests/slowed.py amn ...` is such a worker.

So several of them serve several times as much on a machine with few cores. AMN_TESTS_PAUSE_MS is what each
request takes more.
"""

from __future__ import annotations

import os
import time
from typing import Any

from workers.commands import worker
from workers.handlers.amn import AmnHandler

if __name__ == "__main__":
    pause_s, handle = float(os.environ["AMN_TESTS_PAUSE_MS"]) / 1000, AmnHandler.handle

    def slowed(self: Any, batch: Any) -> Any:
        time.sleep(pause_s * len(batch.requests))
        return handle(self, batch)

    AmnHandler.handle = slowed  # type: ignore[method-assign]
    worker(prog_name="python -m workers")
