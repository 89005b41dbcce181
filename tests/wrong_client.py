"""A client with the faults that its arguments name, each of which shows in one point of the examination.

python -m producer.conformance -- python tests/wrong_client.py "it leaves tokens out"
"""

from __future__ import annotations

import base64
import math
import sys
import time
from typing import Any

import numpy as np
import redis
from reference_client import Program, main, told

from producer import errors
from producer.conformance.case import text
from producer.messages import BATCH_BYTES_MAX, LANES
from producer.protocol import wire
from producer.protocol.maps import pack, unpack
from producer.session import channel, threads
from producer.session.inflight import Inflight
from producer.session.replies import ReplyCursor
from producer.session.submission import Submission
from producer.session.threads import ThreadChannel
from producer.transport import connection
from producer.transport.clock import ServerClock

#: Each fault, and how the point begins that has to fail by it, and no other one.
FAULTS = {
    "it leaves tokens out": "A request arrives",
    "its deadline is by its own clock": "A deadline is",
    "it knows one level": "Each level",
    "it ignores the name of the client": "The client id begins",
    "it sends the contexts of a batch in another order": "A batch is one request",
    "it calls a repeat in flight a duplicate": "An id that is sent again",
    "it calls a duplicate a failure of the worker": "An id that another client used",
    "it never uses an id again after taking it back": "A request that waits",
    "its cancel always answers true": "A request that a worker has",
    "it knows no limits": "A full queue",
    "it reports truths under another key": "A truth is reported",
    "it forgets an answer that was asked for": "An answer is given",
    "it takes whole numbers for 0": "Unknown fields",
    "it fills up vectors that are too short": "An answer without a vector",
    "it turns the rows of a batch's answer round": "The answer to a batch",
    "it takes no provisional answer": "A provisional answer",
    "it never repeats what a worker gave up": "Each failure",
    "it has a list of codes": "A failure by a code",
    "it deletes nothing": "Replies that were read",
    "it reads as a group of consumers": "Answers in a reply stream",
    "it takes what was in flight when a connection broke for lost": "Answers that come while",
    "it drops an answer to what was given up": "A request that is in",
    "it repeats an unheard submit under another id": "A submit whose answer",
    "it calls an outage final": "A server that is away",
    "it calls a loss final": "A request that the server lost",
    "it drops the trace of an answer of AMN": "Live: a worker's answer",
    "it takes any lane for the default": "Live: what breaks",
}


class Wrong(Program):
    """The reference with some of these faults."""

    def __init__(self, faults: set[str]) -> None:
        super().__init__()
        self.faults = faults
        self.taken_back: set[str] = set()
        self.asked_twice: set[str] = set()

    def errs(self, fault: str) -> bool:
        assert fault in FAULTS
        return fault in self.faults

    def do_open(self, command: dict[str, Any]) -> dict[str, Any]:
        left_out = {"client"} if self.errs("it ignores the name of the client") else set()
        left_out |= {"entries_max", "bytes_max"} if self.errs("it knows no limits") else set()
        done = super().do_open({name: command[name] for name in command if name not in left_out})
        if self.errs("it reads as a group of consumers"):
            assert self.producer is not None
            stream = self.producer.channels[0].cursor.stream
            redis.from_url(command["url"]).xgroup_create(stream, "g", "0", mkstream=True)
        return done

    def do_submit(self, command: dict[str, Any]) -> dict[str, Any]:
        for one in command["requests"]:
            known = self.handles.get(one["id"])
            if self.errs("it calls a repeat in flight a duplicate") and known and not known.done():
                return {"results": [told(errors.DuplicateRequest("it is in flight"))]}
            if self.errs("it never uses an id again after taking it back") and one["id"] in self.taken_back:
                return {"results": [told(errors.DuplicateRequest("it was taken back"))]}
            self.spoil(one)
        done = super().do_submit(command)
        [first, *others] = command["requests"]
        lost = "error" in done["results"][0] and self.errs("it repeats an unheard submit under another id")
        if lost and not others and first.get("deadline_ms") is None:
            done = super().do_submit({"requests": [first | {"id": first["id"] + "-x"}]})
            self.handles[first["id"]] = self.handles.get(first["id"] + "-x")
        return done

    def spoil(self, request: dict[str, Any]) -> None:
        if self.errs("it leaves tokens out"):
            request.pop("tokens", None)
        if self.errs("it knows one level"):
            request["level"] = "normal"
        if self.errs("it takes any lane for the default") and request.get("lane") not in LANES:
            request["lane"] = "general"
        in_full = len(request["shape"]) == 3 and "ends" not in request
        if in_full and self.errs("it sends the contexts of a batch in another order"):
            contexts = np.frombuffer(base64.b64decode(request["context"]), "<f4")
            request["context"] = text(contexts.reshape(request["shape"])[::-1])

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carries a command out, and spoils what it answers."""
        answer = super().answer(command)
        for error in (one.get("error", {}) for one in (answer, *answer.get("results", ()))):
            self.spoil_error(error)
        if reply := answer.get("reply"):
            self.spoil_reply(reply)
            whole = command["do"] == "result" and command["id"] not in self.asked_twice
            if whole and self.errs("it forgets an answer that was asked for"):
                del self.handles[command["id"]]
        return answer

    def spoil_error(self, error: dict[str, Any]) -> None:
        codes = {
            "duplicate_request": "it calls a duplicate a failure of the worker",
            "a_code_of_later": "it has a list of codes",
        }
        final = {
            "dead_lettered": "it never repeats what a worker gave up",
            "server_unavailable": "it calls an outage final",
            "request_lost": "it calls a loss final",
        }
        code = error.get("code")
        if code in codes and self.errs(codes[code]):
            error["code"] = "inference_failed"
        if code in final and self.errs(final[code]):
            error["retryable"] = False

    def spoil_reply(self, reply: dict[str, Any]) -> None:
        if reply.get("confidence") == 1 and self.errs("it takes whole numbers for 0"):
            reply["confidence"] = 0
        if reply["served_by"] == "amn" and self.errs("it drops the trace of an answer of AMN"):
            reply["traceparent"] = ""
        if "vectors" in reply and self.errs("it turns the rows of a batch's answer round"):
            rows = np.frombuffer(base64.b64decode(reply["vectors"]), "<f4").reshape(-1, 768)
            reply["vectors"] = text(rows[::-1])

    def do_provisional(self, command: dict[str, Any]) -> dict[str, Any]:
        self.asked_twice.add(command["id"])
        if self.errs("it takes no provisional answer"):
            return super().do_result(command | {"timeout_ms": 100})
        return super().do_provisional(command)

    def do_cancel(self, command: dict[str, Any]) -> dict[str, Any]:
        done = super().do_cancel(command)
        self.taken_back.add(command["id"])
        return {"cancelled": True} if self.errs("its cancel always answers true") else done

    def do_truth(self, command: dict[str, Any]) -> dict[str, Any]:
        if self.errs("it reports truths under another key"):
            self.handles[command["id"]].sample_key = "doc-12#198"  # of another one
        return super().do_truth(command)


def sent_once(channel: ThreadChannel, *call: Any, send: Any = ThreadChannel._sent) -> list[int]:
    """Sends without a repeat of its own."""
    try:
        return list(send(channel, *call))
    except connection.LOST as error:
        channel.disconnect()
        raise errors.ServerUnavailable("the answer was lost") from error


def failed_at_once(_: Submission, error: errors.ServerError) -> float:
    """Tries nothing again."""
    raise error


def spoil_client(faults: set[str]) -> None:
    """Puts the faults that lie deeper into the client itself."""

    class Cursor(ReplyCursor):
        def commands(self, blocks: bool = True) -> list[tuple[Any, ...]]:
            commands = super().commands(blocks)
            if "it deletes nothing" in faults:
                commands = [("XDEL", self.stream, "0-1") if one[0] == "XDEL" else one for one in commands]
            if "it reads as a group of consumers" in faults:
                commands[-1] = ("XREADGROUP", "GROUP", "g", "c", *commands[-1][1:-1], ">")
            return commands

        def failed(self, error: Exception) -> None:
            super().failed(error)
            if "it takes what was in flight when a connection broke for lost" in faults:
                for handle in list(self._inflight.handles.values()):
                    if handle.got_in_at_s < math.inf:
                        self._inflight.settle(handle.id, errors.RequestLost("the connection broke"))

    class Waiting(Inflight):
        def on_reply(self, payload: bytes, entry_id: bytes = b"") -> None:
            fields = unpack(payload, BATCH_BYTES_MAX)
            if "it fills up vectors that are too short" in faults and "vector" in fields:
                payload = pack(fields | {"vector": fields["vector"].ljust(3072, b"\0")})
            known = wire.decode_reply(payload).id in self.handles
            if known or "it drops an answer to what was given up" not in faults:
                super().on_reply(payload, entry_id)

    channel.ReplyCursor, channel.Inflight = Cursor, Waiting  # type: ignore[misc]
    if "it repeats an unheard submit under another id" in faults:
        threads.LOST = ()  # type: ignore[assignment]
        ThreadChannel._sent, Submission.failed = sent_once, failed_at_once  # type: ignore[method-assign]
    if "its deadline is by its own clock" in faults:
        ServerClock.now_ms = lambda _: time.time() * 1000  # type: ignore[method-assign]


if __name__ == "__main__":
    named = set(sys.argv[1:])
    spoil_client(named)
    main(Wrong(named))
