"""The points of what a client reads: answers, failures, outages and losses; and what live workers say."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import numpy as np

from producer.conformance.case import SOON_MS, WAIT_S, Case, Taken, expect_error, expect_reply, read, until
from producer.conformance.program import Failed, LeftOut, expect
from producer.messages import BATCH_BYTES_MAX, BatchReply, Failure
from producer.protocol.maps import pack, unpack
from producer.protocol.wire import encode_reply

_CODES = "bad_norm not_finite unknown_lane unknown_encoder deadline_exceeded inference_failed dead_lettered "
_CODES += "undecodable unsupported_version"
#: Streams by place that are empty, and how often half a second is waited for a client that looks after five.
_NOTHING, _TURNS = dict.fromkeys("12345", ""), 50
_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: Longer than a client tries again by itself; and than it does for a request with so short a deadline.
_AWAY_S, _SHORTER_S, _DEADLINE_MS = 3.0, 1.5, 500
#: For a live worker that has much to do.
_WORK_MS = 20_000


def answered(case: Case) -> None:
    """An answer is given with all of its fields, and again when it is asked for again."""
    case.finish(taken := case.sent(), reply := case.reply(taken))
    expect_reply(case.result(taken), reply)


def foreign(case: Case) -> None:
    """Unknown fields, whole numbers for floats, answers to nobody, and unreadable ones do no harm."""
    taken = case.sent()
    for odd in (b"\xc1 no message", case.reply(taken, id="of-nobody")):
        case.put(taken, odd, final=False)
    reply = case.reply(taken, confidence=1.0, margin=0.0, gain=2.0)
    later = {"confidence": 1, "margin": 0, "gain": 2, "unheard_of": [{"x": None}], "more": b"\x00"}
    case.put(taken, pack(unpack(encode_reply(reply), BATCH_BYTES_MAX) | later))
    expect_reply(case.result(taken), reply)


def batch(case: Case) -> None:
    """The answer to a batch has a row for each context."""
    taken = case.sent(context=case.contexts(3))
    case.finish(taken, _rows(case, taken))


def _rows(case: Case, taken: Taken) -> BatchReply:
    """The answer to a batch of three."""
    eighths, bits = (np.arange(3) / 8).astype("<f4"), (np.arange(3) % 2).astype("u1")
    arrays: dict[str, Any] = {**dict.fromkeys(("confidences", "margins", "gains"), eighths), "fired": bits}
    names: dict[str, Any] = {"rules": ("long_context",), "sheds": ("batch",), "calibration": "of-the-stage"}
    tiers = {"amn@0123456789ab": np.ones((3, 2), "<f4")}
    vectors = case.contexts(3)[:, 0]
    return BatchReply(id=taken.request.id, vectors=vectors, shed=bits, tiers=tiers, **arrays, **names)


def provisional(case: Case) -> None:
    """A provisional answer comes first, a wait for the final one may end, and then it comes."""
    taken = case.sent(provisional=True)
    expect(taken.request.provisional, "field 'provisional' is not set")
    case.put(taken, fast := case.reply(taken, provisional=True), final=False)
    expect_reply(case.program.ask("provisional", id=taken.request.id, timeout_ms=SOON_MS), fast)
    expect_error(case.result(taken, 200), "result_timeout", True)
    case.finish(taken, final := case.reply(taken))
    case.put(taken, fast, final=False)  # it was overtaken, and is dropped
    case.finish(case.sent())
    expect_reply(case.result(taken), final)


def other_size(case: Case) -> None:
    """An answer without a vector, of another size, or to other contexts is skipped."""
    taken = case.sent()
    fields = unpack(encode_reply(reply := case.reply(taken)), BATCH_BYTES_MAX)
    case.put(taken, pack(fields | {"vector": fields["vector"][4:]}), final=False)
    case.put(taken, pack({name: fields[name] for name in fields if name != "vector"}), final=False)
    case.put(taken, _rows(case, taken), final=False)
    case.finish(taken, reply)


def failures(case: Case) -> None:
    """Each failure that a worker tells is told by its code, to be retried where it says so."""
    for code in _CODES.split():
        _fails(case, code)


def later(case: Case) -> None:
    """A failure by a code that nobody knows yet is told by that code."""
    _fails(case, "a_code_of_later")


def _fails(case: Case, code: str) -> None:
    for again in (False, True):
        taken = case.sent()
        case.put(taken, Failure(id=taken.request.id, code=code, message="the worker's", retryable=again))
        expect_error(answer := case.result(taken), code, again)
        expect(answer["error"].get("message") == "the worker's", "the message is not the worker's")


def trimmed(case: Case) -> None:
    """Replies that were read are deleted; `close` ends the program with exit code 0, and leaves none."""
    for _ in range(40):
        case.finish(taken := case.sent())
    expect(
        until(lambda: not case.replies(taken)), f"{case.replies(taken)} of 40 are there after {WAIT_S:.0f} s"
    )
    case.finish(taken := case.sent())
    expect((code := case.leave()) == 0, f"the exit code is {code}")
    expect(not case.replies(taken), "its reply stream is there after `close`")


def expired(case: Case) -> None:
    """Answers in a reply stream that expired meanwhile, and was made anew, are read."""
    for _ in range(2):
        taken = case.sent()
        case.client.delete(case.keys.replies(taken.request.reply_to))
        case.finish(taken)


def broken(case: Case) -> None:
    """Answers that come while the connection is broken are read."""
    way = case.breakable()
    case.accepted(case.program, *(case.asked() for _ in range(3)))
    way.snap(away=True)
    sent = [(taken, case.reply(taken)) for taken in case.take(3)]
    for taken, reply in sent:
        case.put(taken, reply)
    way.away = False
    for taken, reply in sent:
        expect_reply(case.result(taken, 2 * SOON_MS), reply)


def unheard(case: Case) -> None:
    """A submit whose answer is lost is repeated, or is server_unavailable, and runs once."""
    asked = _connected(case)
    case.breakable().lose(asked["id"].encode())
    [result] = case.submit(case.program, asked)
    if not case.way.lost:
        raise LeftOut("its answer was not lost, since the id was not seen in what was sent")
    _again(case, asked, result)
    case.finish(case.take()[0])


def abandoned(case: Case) -> None:
    """A request that is in although its submit failed is answered, or a duplicate, when it is sent again."""
    asked = _connected(case, deadline_ms=_DEADLINE_MS)
    case.breakable().lose(asked["id"].encode(), times=1_000_000)
    [result] = _while_away(case, asked, _SHORTER_S)
    case.put(taken := case.take()[0], reply := case.reply(taken))
    until(lambda: not case.replies(taken), _SHORTER_S)  # it was read, as far as that can be seen
    [again] = case.submit(case.program, asked | {"deadline_ms": 60_000}) if "error" in result else [result]
    answer = again if "error" in again else case.result(taken)
    if answer.get("error", {}).get("code") != "duplicate_request":
        expect_reply(answer, reply)


def away(case: Case) -> None:
    """A server that is away is server_unavailable, to be retried, or waited for; then it is used on."""
    asked = _connected(case)
    case.breakable().snap(away=True)
    [result] = _while_away(case, asked, _AWAY_S)
    _again(case, asked, result)
    case.finish(case.take()[0])


def _connected(case: Case, **fields: Any) -> dict[str, Any]:
    """A request to be sent, after one that shows that the program is connected."""
    case.finish(case.sent())
    return case.asked(**fields)


def _while_away(case: Case, asked: dict[str, Any], away_s: float) -> list[dict[str, Any]]:
    """Has a request submitted on a way that heals after a time."""
    (healing := threading.Timer(away_s, case.way.heal)).start()
    try:
        return case.submit(case.program, asked)
    finally:
        healing.join()


def _again(case: Case, asked: dict[str, Any], result: dict[str, Any]) -> None:
    """Submits it once more, where the program leaves that to its caller."""
    if "error" in result:
        expect_error(result, "server_unavailable", True)
        case.accepted(case.program, asked)


def lost(case: Case) -> None:
    """A request that the server lost is request_lost, to be retried."""
    taken = case.sent()
    case.client.xdel(case.keys.requests, taken.entry)
    for turn in range(1, _TURNS):
        # As a worker says it each second: no stream holds anything.
        case.client.hset(case.keys.standing, mapping={**_NOTHING, "turn": str(turn)})
        answer = case.result(taken, 500)
        if answer.get("error", {}).get("code") != "result_timeout":
            break
    expect_error(answer, "request_lost", True)


def live(case: Case) -> None:
    """Live: a worker's answer is a unit vector, with the trace of its request; a batch has three."""
    reply = read(_of_workers(case, case.asked(traceparent=_TRACE)))
    expect(abs(float(np.linalg.norm(reply.vector)) - 1) < 1e-3, "the vector is no unit vector")
    expect(reply.traceparent == _TRACE, f"traceparent is {reply.traceparent!r}")
    reply = read(_of_workers(case, case.asked(case.contexts(3))))
    expect(reply.vectors.shape == (3, 768), f"vectors have the shape {reply.vectors.shape}")


def refused(case: Case) -> None:
    """Live: what breaks the contract is told by its code, be it by the client or by a worker."""
    context = case.contexts(1)[0]
    expect_error(_of_workers(case, case.asked(2 * context)), "bad_norm", False)
    expect_error(_of_workers(case, case.asked(np.where(context > 0.1, np.inf, context))), "not_finite", False)
    expect_error(_of_workers(case, case.asked(lane="no-lane-of-ours")), "unknown_lane", False)
    expect_error(_of_workers(case, case.asked(deadline_ms=0.001)), "deadline_exceeded", False)


def _of_workers(case: Case, asked: dict[str, Any]) -> dict[str, Any]:
    if not case.has_workers():
        raise LeftOut(f"no worker of kind amn says that it lives in queue {case.live!r}: start one")
    program = case.opened(queue=case.live)
    [result] = case.submit(program, asked)
    answer = result if "error" in result else program.ask("result", id=asked["id"], timeout_ms=_WORK_MS)
    with suppress(Failed):  # so that its reply stream goes; what `close` should do is another point
        program.close()
    return answer


POINTS = (
    *(answered, foreign, other_size, batch, provisional, failures, later),
    *(trimmed, expired, broken, unheard, abandoned, away, lost, live, refused),
)
