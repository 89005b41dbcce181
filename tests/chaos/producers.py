"""The producer processes, seen from the harness."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from .settings import ROOT


class ProducerProcess:
    """One of them.

    Attributes:
        prefix: Of its request ids.
        status: The last one it sent.
        result: Its audit, when it is through.
    """

    def __init__(self, config: dict[str, Any], log: Path) -> None:
        self.prefix: str = config["prefix"]
        self.status: dict[str, Any] = {}
        self.result: dict[str, Any] | None = None
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.traffic", json.dumps(config)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, command: str) -> None:
        """Sends a line; one that is gone cannot hear it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends it. Idempotent."""
        if self.alive:
            self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "result" in message:
                self.result = message["result"]
            else:
                self.status = message
