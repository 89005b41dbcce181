"""The Python client behind the commands of docs/conformance.md: the reference.

python -m producer.conformance -- python tests/reference_client.py
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any, TextIO

import numpy as np

from producer.client import Producer
from producer.errors import InvalidRequest, QueueError
from producer.messages import BATCH_BYTES_MAX, DEFAULT_ENCODER, BatchReply, Reply
from producer.options import Options
from producer.protocol.maps import unpack
from producer.protocol.wire import encode_reply
from producer.settings import ProducerSettings
from producer.windows import Windows

#: Fields of a request that are options of the same name.
_OPTIONS = ("lane", "tokens", "sequence", "position", "domain", "escalate", "provisional", "traceparent")
_RENAMED = {"id": "request_id", "level": "priority", "deadline_ms": "deadline_ms"}


class Program:
    """Carries out one command after the other."""

    def __init__(self) -> None:
        self.producer: Producer | None = None
        self.handles: dict[str, Any] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carries a command out; what it answers, be it an error."""
        run = getattr(self, f"do_{command['do']}", None)
        if run is None:
            return told(Unsupported(f"there is no command {command['do']!r}"))
        try:
            return dict(run(command))
        except QueueError as error:
            return told(error)

    def do_open(self, command: dict[str, Any]) -> dict[str, Any]:
        """Connects to the queue."""
        names = ("url", "queue", "client", "entries_max", "bytes_max")
        settings = ProducerSettings(**{name: command[name] for name in names if name in command})
        self.producer = Producer(settings=settings)
        self.producer.start()
        return {"ok": True}

    def do_submit(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sends requests of one context each, or batches."""
        assert self.producer is not None
        requests = command["requests"]
        batched = len(requests[0]["shape"]) == 3
        send = self.producer.submit_batches if batched else self.producer.submit_many
        handles, refused = [], {}
        try:
            contexts, options = map(contexts_of, requests), map(options_of, requests)
            handles = send(list(contexts), options=list(options))
        except QueueError as error:
            handles, refused = list(error.accepted), told(error)
        got_in = {handle.id: handle for handle in handles}
        self.handles |= got_in
        return {"results": [{"ok": True} if one["id"] in got_in else refused for one in requests]}

    def do_result(self, command: dict[str, Any]) -> dict[str, Any]:
        """Waits for the final answer."""
        return {"reply": shown(self._handle(command).result(command["timeout_ms"]))}

    def do_provisional(self, command: dict[str, Any]) -> dict[str, Any]:
        """Waits for the first answer."""
        return {"reply": shown(self._handle(command).first(command["timeout_ms"]))}

    def do_cancel(self, command: dict[str, Any]) -> dict[str, Any]:
        """Takes a request back."""
        assert self.producer is not None
        return {"cancelled": self.producer.cancel(command["id"])}

    def do_truth(self, command: dict[str, Any]) -> dict[str, Any]:
        """Reports a true vector."""
        assert self.producer is not None
        vector = np.frombuffer(base64.b64decode(command["vector"]), "<f4")
        return {"sent": self.producer.report_truth(self._handle(command), vector)}

    def do_close(self, _: dict[str, Any]) -> dict[str, Any]:
        """Closes the client."""
        assert self.producer is not None
        self.producer.close()
        return {"ok": True}

    def _handle(self, command: dict[str, Any]) -> Any:
        if command["id"] not in self.handles:
            raise InvalidRequest(f"request {command['id']!r} was not submitted here")
        return self.handles[command["id"]]


class Unsupported(QueueError):
    """This program does not have the command, or a part of it."""


def told(error: QueueError) -> dict[str, Any]:
    """An error as an answer."""
    return {"error": {"code": error.code, "retryable": error.retryable, "message": str(error)}}


def shown(reply: Reply | BatchReply) -> dict[str, Any]:
    """A reply as its message, with base64 in the place of bytes."""
    return dict(_texts(unpack(encode_reply(reply), BATCH_BYTES_MAX)))


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _texts(one) for name, one in value.items()}
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def contexts_of(request: dict[str, Any]) -> Any:
    """The array of a request, or the windows of a batch whose contexts share their vectors."""
    numbers = np.frombuffer(base64.b64decode(request["context"]), f"<{request['dtype']}")
    if "ends" not in request:
        return numbers.reshape(request["shape"])
    ends = np.frombuffer(base64.b64decode(request["ends"]), "<u2")
    return Windows(vectors=numbers.reshape(-1, 768), ends=ends)


def options_of(request: dict[str, Any]) -> Options:
    """The options of a request."""
    if request.get("encoder", DEFAULT_ENCODER) != DEFAULT_ENCODER:
        raise Unsupported("another encoder is a setting of the whole producer here")
    found = {name: request[name] for name in _OPTIONS if name in request}
    return Options(**found, **{to: request[name] for name, to in _RENAMED.items() if name in request})


def main(program: Program | None = None, lines: TextIO = sys.stdin, out: TextIO = sys.stdout) -> None:
    """Answers the commands on standard input, one a line, until `close`."""
    program = program or Program()
    for line in lines:
        command = json.loads(line)
        out.write(json.dumps(program.answer(command)) + "\n")
        out.flush()
        if command["do"] == "close":
            return


if __name__ == "__main__":
    main()
