"""The way from the server to the workers: whether the answers to their reads come through."""

from __future__ import annotations

from collections.abc import Sequence

from ops.health.findings import FAILURE, OK, WARNING, Finding
from ops.health.server import ServerFacts
from ops.health.workers import WorkerFacts
from producer.messages import PRIORITIES
from workers.engine.reads import READ_BYTES_MAX

#: The largest answer to one read: as much of each level.
ANSWER_BYTES_MAX = len(PRIORITIES) * READ_BYTES_MAX
_MEND = "set `client-output-buffer-limit normal 0 0 0`, in the server's file too"


def judge(server: ServerFacts, workers: Sequence[WorkerFacts]) -> list[Finding]:
    """One finding: the cause, where the server tells it."""
    narrowed = [worker for worker in workers if worker.reads_narrowed]
    limit_bytes = server.output_limit_bytes
    if not narrowed:
        if not limit_bytes or limit_bytes >= ANSWER_BYTES_MAX:
            return [Finding(OK, "reads", "answers come through")]
        text = (
            f"the server closes connections with more than {limit_bytes:,} bytes waiting; a worker's read "
            f"takes up to {ANSWER_BYTES_MAX:,}, and goes on in small steps: {_MEND}"
        )
        return [Finding(WARNING, "reads", text)]
    names = ", ".join(
        f"{worker.name} ({worker.reads_lost} lost, now {worker.reads_narrowed} at a time)"
        for worker in narrowed
    )
    if limit_bytes:
        cause = f"the server closes connections with more than {limit_bytes:,} bytes waiting"
        cause += f", {server.output_cuts} so far: {_MEND}"
    elif limit_bytes is None and server.output_cuts:
        cause = f"the server closed {server.output_cuts} connections over its output limit: {_MEND}"
    else:
        cause = "the way between them cuts large answers: look at its MTU, proxies and time limits"
    return [Finding(FAILURE, "reads", f"answers to reads are lost on the way to {names}; {cause}")]
