"""The producers that are killed, and what becomes of their requests without them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from producer.keys import Keys
from producer.messages import Reply
from producer.protocol import wire

from .settings import ROOT

PREFIX = "doomed"


class Victims:
    """One living producer at a time; `kill` ends it and starts the next.

    Attributes:
        clients: Every client id so far.
    """

    def __init__(self, config: dict[str, Any], log: Path) -> None:
        self.clients: list[str] = []
        self._config = config
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._accepted: Counter[str] = Counter()
        self._number = 0

    def start(self) -> None:
        """Starts the next one."""
        config = self._config | {"prefix": f"{PREFIX}{self._number}"}
        self._number += 1
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.doomed", json.dumps(config)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def kill(self) -> str:
        """SIGKILL to the living one; the next takes its place. Nothing when it had sent nothing yet."""
        if self._process is not None and self._process.poll() is not None:  # it found no server
            self.close()
            self.start()
            return ""
        if self._process is None or not self.clients or not self.clients[-1].startswith(self._name()):
            return ""
        client = self.clients[-1]
        self.close()
        self.start()
        return f"{client}, after {self._accepted[client]} requests"

    def close(self) -> None:
        """SIGKILL, and no next one. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def verdict(self, client: redis.Redis, keys: Keys) -> dict[str, Any]:
        """The finals that nobody read, each id once; removes their streams."""
        finals: Counter[str] = Counter()
        for one in self.clients:
            for _, fields in client.xrange(keys.replies(one)):
                if b"reply" in fields:
                    reply = wire.decode_reply(fields[b"reply"])
                    if not (isinstance(reply, Reply) and reply.provisional):
                        finals[f"{one} {reply.id}"] += 1
            client.delete(keys.replies(one))
        return {
            "killed": max(self._number - 1, 0),
            "accepted": sum(self._accepted.values()),
            "unread_finals": len(finals),
            "doubled": [name for name, times in finals.items() if times > 1][:20],
        }

    def _name(self) -> str:
        return f"{PREFIX}{self._number - 1}."

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # killed in the midst of a line
                return
            if message["client"] not in self.clients:
                self.clients.append(message["client"])
            self._accepted[message["client"]] = message["accepted"]
