"""The points of what a client reads: answers, failures, outages and losses; and what live workers say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from producer.conformance.case import SOON_MS, WAIT_S, Case, expect_error, expect_reply, read, until
from producer.conformance.program import LeftOut, Way, expect
from producer.messages import BATCH_BYTES_MAX, BatchReply, Failure
from producer.protocol.maps import pack, unpack
from producer.protocol.wire import encode_reply

#: What a worker sends; the last code is of no version.
_CODES = "bad_norm not_finite unknown_lane unknown_encoder deadline_exceeded inference_failed dead_lettered "
_CODES += "undecodable unsupported_version a_code_of_later"
#: Streams by place that are empty, and how often half a second is waited for a client that looks after five.
_NOTHING, _TURNS = dict.fromkeys("12345", ""), 50
_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: Longer than a client tries again by itself.
_AWAY_S = 3.0
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
    eighths, bits = (np.arange(3) / 8).astype("<f4"), (np.arange(3) % 2).astype("u1")
    arrays: dict[str, Any] = {**dict.fromkeys(("confidences", "margins", "gains"), eighths), "fired": bits}
    names: dict[str, Any] = {"rules": ("long_context",), "sheds": ("batch",), "calibration": "of-the-stage"}
    tiers = {"amn@0123456789ab": np.ones((3, 2), "<f4")}
    vectors = case.contexts(3)[:, 0]
    case.finish(
        taken, BatchReply(id=taken.request.id, vectors=vectors, shed=bits, tiers=tiers, **arrays, **names)
    )


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


def failed(code: str) -> Callable[[Case], None]:
    """The point of a failure with this code."""

    def examine(case: Case) -> None:
        for again in (False, True):
            taken = case.sent()
            case.put(taken, Failure(id=taken.request.id, code=code, message="the worker's", retryable=again))
            expect_error(answer := case.result(taken), code, again)
            expect(answer["error"].get("message") == "the worker's", "the message is not the worker's")

    examine.__doc__ = f"The failure {code} is told by its code, to be retried where it says so."
    return examine


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
    way = _breakable(case)
    case.accepted(case.program, *(case.asked() for _ in range(3)))
    way.snap(away=True)
    sent = [(taken, case.reply(taken)) for taken in case.take(3)]
    for taken, reply in sent:
        case.put(taken, reply)
    way.away = False
    for taken, reply in sent:
        expect_reply(case.result(taken, 2 * SOON_MS), reply)


def unheard(case: Case) -> None:
    """A submit whose answer is lost is repeated, and runs once."""
    case.finish(case.sent())  # so that it is connected
    _submitted(case, case.asked(), lambda: case.waiting() > 0, "mute")


def away(case: Case) -> None:
    """A server that is away is server_unavailable, to be retried, or waited for; then it is used on."""
    _breakable(case).snap(away=True)
    over_s = time.monotonic() + _AWAY_S
    _submitted(case, case.asked(), lambda: time.monotonic() > over_s, "away")


def _submitted(case: Case, asked: dict[str, Any], over: Callable[[], bool], trouble: str) -> None:
    """Has a request submitted while there is trouble, which ends as soon as `over` says so."""
    way = _breakable(case)
    setattr(way, trouble, True)

    def mend() -> None:
        until(over)
        setattr(way, trouble, False)

    (mending := threading.Thread(target=mend)).start()
    [result] = case.submit(case.program, asked)
    mending.join()
    if "error" in result:
        expect_error(result, "server_unavailable", True)
        case.accepted(case.program, asked)
    case.finish(case.take()[0])


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
    program = case.opened(queue=case.live)
    [result] = case.submit(program, asked)
    return result if "error" in result else program.ask("result", id=asked["id"], timeout_ms=_WORK_MS)


def _breakable(case: Case) -> Way:
    if not case.way.possible:
        raise LeftOut("the way to this server cannot be broken: it is encrypted, or has several servers")
    return case.way


POINTS = (
    *(answered, foreign, batch, provisional),
    *map(failed, _CODES.split()),
    *(trimmed, expired, broken, unheard, away, lost, live, refused),
)
