"""The points of what a client sends: requests, ids, limits, truths."""

from __future__ import annotations

import numpy as np

from producer.conformance.case import SOON_MS, Case, expect_error, text
from producer.conformance.program import expect
from producer.keys import GROUP
from producer.messages import PRIORITIES

_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_TEXTS = {"lane": "code-api", "sequence": "doc-12", "domain": "médecine", "traceparent": _TRACE}
_GIVEN = {**_TEXTS, "tokens": 4321, "position": 145, "escalate": True}
#: What is shown of the server's clock is so far from ours, and a client that asks for it comes as close.
_AHEAD_S, _CLOSE_MS = 3_600, 2_000


def given(case: Case) -> None:
    """A request arrives as it was given, in float32 and in float16."""
    for dtype in ("f4", "f2"):
        context = case.contexts(1, dtype)[0]
        found = case.sent(context=context, **_GIVEN)
        fields = {name: getattr(found.request, name) for name in _GIVEN}
        expect(fields == _GIVEN, f"the fields came as {fields}")
        expect(found.request.context.tobytes() == context.tobytes(), f"the {dtype} context is another one")
        case.finish(found)


def deadline(case: Case) -> None:
    """A deadline is so many milliseconds after now, by the server's clock, which is an hour ahead here."""
    case.breakable().ahead_s = _AHEAD_S
    case.accepted(case.opened(), case.asked(deadline_ms=60_000))
    [found], (seconds, _) = case.take(), case.client.time()
    left_ms = found.request.expires_at_ms - (seconds + _AHEAD_S) * 1000
    expect(abs(left_ms - 60_000) < _CLOSE_MS, f"expires_at_ms is {left_ms:.0f} ms from now")


def levels(case: Case) -> None:
    """Each level has its own stream, and several requests of a call keep their order."""
    asked = [case.asked(level=PRIORITIES[n % 3]) for n in range(6)]
    case.accepted(case.program, *asked)
    found = [(PRIORITIES[one.level], one.request.id) for one in case.take(6)]
    wanted = [(level, one["id"]) for level in PRIORITIES for one in asked if one["level"] == level]
    expect(found == wanted, f"they came as {found}")


def names(case: Case) -> None:
    """The client id begins with the given name, each client has its own, and no key of an id tells it."""
    for program in [case.opened(client="team-a") for _ in range(2)]:
        case.accepted(program, case.asked())
    found = case.take(2)
    for one in found:
        name = one.request.reply_to
        expect(name.startswith("team-a.") and len(name) >= 23, f"reply_to is {name!r}")
        expect(
            name.encode() not in (case.client.get(case.keys.seen(one.request.id)) or b""), "its mark tells it"
        )
    expect(len({one.request.reply_to for one in found}) == 2, "two clients have the same reply stream")


def batch(case: Case) -> None:
    """A batch is one request, also where it holds each vector once."""
    vectors, ends = case.contexts(2)[:, :4].reshape(8, 768), np.array([4, 5, 7], "<u2")
    contexts = np.stack([vectors[end - 4 : end + 1] for end in ends])
    for shared in ({}, {"context": text(vectors), "ends": text(ends)}):
        case.accepted(case.program, case.asked(contexts) | shared)
        [taken] = case.take()
        expect(taken.request.context.tobytes() == contexts.tobytes(), "the contexts are other ones")
        case.client.delete(*case.keys.places, *case.keys.counters)


def repeated(case: Case) -> None:
    """An id that is sent again, in flight, is one request with one answer."""
    asked = case.asked()
    for _ in range(2):
        case.accepted(case.program, asked)
    case.finish(case.take()[0])


def duplicate(case: Case) -> None:
    """An id that another client used is duplicate_request, and is not run."""
    asked, other = case.asked(), case.opened()
    case.accepted(case.program, asked)
    [answer] = case.submit(other, asked)
    if "error" not in answer:
        answer = other.ask("result", id=asked["id"], timeout_ms=SOON_MS)
    expect_error(answer, "duplicate_request", False)
    case.finish(case.take()[0])


def cancelled(case: Case) -> None:
    """A request that waits is taken back, and its id may be used again."""
    asked = case.asked()
    case.accepted(case.program, asked)
    expect(case.program.done("cancel", id=asked["id"])["cancelled"] is True, "cancel did not answer true")
    expect(case.waiting() == 0, "the request is in the stream still")
    expect_error(case.program.ask("result", id=asked["id"], timeout_ms=SOON_MS), "cancelled", False)
    case.accepted(case.program, asked)
    case.finish(case.take()[0])


def leased(case: Case) -> None:
    """A request that a worker has is not taken back, and is answered."""
    taken = case.sent()
    case.client.xgroup_create(case.keys.requests, GROUP, "0")
    case.client.xreadgroup(GROUP, "a worker", {case.keys.requests: ">"})
    found = case.program.done("cancel", id=taken.request.id)["cancelled"]
    expect(found is False, "cancel did not answer false")
    case.finish(taken)


def full(case: Case) -> None:
    """A full queue is queue_full, to be retried, and what came before is in."""
    results = case.submit(case.opened(entries_max=2), *(case.asked() for _ in range(4)))
    expect(results[:2] == [{"ok": True}] * 2, f"the first two results are {results[:2]}")
    for result in results[2:]:
        expect_error(result, "queue_full", True)
    case.take(2)


def truth(case: Case) -> None:
    """A truth is reported under the key of its document."""
    # This key is in the sample at every rate, so that no client may leave it out.
    taken, vector = case.sent(sequence="doc-12", position=145), case.contexts(1)[0, 0]
    sent = case.program.done("truth", id=taken.request.id, vector=text(vector))["sent"]
    expect(sent is True, "it was not sent")
    found = [row[1] for row in case.client.xrange(case.keys.truths)]
    wanted = {b"kind": b"truth", b"key": b"doc-12#145", b"vector": vector.tobytes()}
    expect(found == [wanted], f"{len(found)} truths were reported: {str(found)[:120]}")


POINTS = (given, deadline, levels, names, batch, repeated, duplicate, cancelled, leased, full, truth)
