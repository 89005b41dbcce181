"""A client that does many things wrong, each in a way that shows in one point of the examination."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
from reference_client import Program, main

from producer.conformance.case import text
from producer.messages import LANES
from producer.session import channel
from producer.session.replies import ReplyCursor

#: What it does wrong, and how the points begin that have to fail by it.
FAULTS = {
    "it leaves tokens out": ["A request arrives"],
    "its deadline is in seconds": ["A deadline is"],
    "it knows one level": ["Each level"],
    "it ignores the name of the client": ["The client id begins"],
    "it calls a duplicate accepted, and waits": ["An id that another client used"],
    "its cancel always answers true": ["A request that a worker has"],
    "it knows no limits": ["A full queue"],
    "it reports truths under another key": ["A truth is reported"],
    "it forgets an answer that was asked for": ["An answer is given"],
    "it turns the rows of a batch's answer round": ["The answer to a batch"],
    "it takes no provisional answer": ["A provisional answer"],
    "it has a list of codes": ["The failure a_code_of_later"],
    "it never repeats what a worker gave up": ["The failure dead_lettered"],
    "it deletes nothing": ["Replies that were read"],
    "it never reads again after a broken connection": ["Answers that come", "A server that is"],
    "it takes any lane for the default": ["Live: what breaks"],
}


class Wrong(Program):
    """The reference with these faults."""

    def do_open(self, command: dict[str, Any]) -> dict[str, Any]:
        return super().do_open({name: command[name] for name in ("url", "queue")})

    def do_submit(self, command: dict[str, Any]) -> dict[str, Any]:
        for one in command["requests"]:
            one |= {"tokens": 0, "level": "normal", "deadline_ms": one.get("deadline_ms", 1e9) / 1000}
            one["lane"] = one["lane"] if one.get("lane") in LANES else "general"
        return super().do_submit(command)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carries a command out, and spoils what it answers."""
        answer = super().answer(command)
        error, reply = answer.get("error", {}), answer.get("reply", {})
        if error.get("code") == "dead_lettered":
            error["retryable"] = False
        if error.get("code") in ("a_code_of_later", "duplicate_request"):
            error["code"] = "inference_failed"
        if reply and command["do"] == "result":
            del self.handles[command["id"]]
        if "vectors" in reply:
            rows = np.frombuffer(base64.b64decode(reply["vectors"]), "<f4").reshape(-1, 768)
            reply["vectors"] = text(rows[::-1])
        return answer

    def do_provisional(self, command: dict[str, Any]) -> dict[str, Any]:
        return super().do_result(command | {"timeout_ms": 100})

    def do_cancel(self, command: dict[str, Any]) -> dict[str, Any]:
        super().do_cancel(command)
        return {"cancelled": True}

    def do_truth(self, command: dict[str, Any]) -> dict[str, Any]:
        self.handles[command["id"]].sample_key = "doc-12#198"  # of another one
        return super().do_truth(command)


class Cursor(ReplyCursor):
    """Reads without deleting, and never again after a failure."""

    def commands(self) -> list[tuple[Any, ...]]:
        return [("XDEL", self.stream, "0-1") if one[0] == "XDEL" else one for one in super().commands()]

    def failed(self, error: Exception) -> None:
        time.sleep(60)


if __name__ == "__main__":
    channel.ReplyCursor = Cursor  # type: ignore[misc]
    main(Wrong())
