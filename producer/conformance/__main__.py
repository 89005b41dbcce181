"""Examines a client program against a server, and prints what it does right and wrong.

python -m producer.conformance -- node client.mjs
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable

from producer.conformance import replies, requests
from producer.conformance.case import Case
from producer.conformance.program import Failed, LeftOut
from producer.errors import QueueError
from producer.settings import ProducerSettings
from producer.transport.connection import driver_errors

_PASSED, _FAILED, _LEFT_OUT = "passed", "FAILED", "left out"


def verdict_on(point: Callable[[Case], None], case: Case) -> tuple[str, str]:
    """The verdict on a point, and why."""
    found, why = _PASSED, ""
    try:
        point(case)
    except LeftOut as error:
        found, why = _LEFT_OUT, str(error)
    except Failed as error:
        found, why = _FAILED, str(error)
    except (LookupError, TypeError, AttributeError) as error:  # at what the program answered
        found, why = _FAILED, f"an answer is not as docs/conformance.md has it: {error!r}"
    case.end(failed=found == _FAILED)
    return found, why


def examine(case: Case, only: str) -> Counter[str]:
    """Prints a line for each point as it is examined; counts the verdicts."""
    counts = Counter({_PASSED: 0, _FAILED: 0, _LEFT_OUT: 0})
    try:
        for point in (*requests.POINTS, *replies.POINTS):
            sentence = str(point.__doc__)
            if only in sentence:
                found, why = verdict_on(point, case)
                counts[found] += 1
                sys.stdout.write(f"{found:8}  {sentence}" + (f"\n{'':10}{why}" if why else "") + "\n")
                sys.stdout.flush()
    finally:
        case.close()
    return counts


def conclude(counts: Counter[str], *, every: bool) -> int:
    """Prints what the verdicts mean together; the exit code."""
    told, left_out = ", ".join(f"{count} {found}" for found, count in counts.items()), counts[_LEFT_OUT]
    if not counts[_PASSED] + counts[_FAILED]:
        sys.stdout.write(f"{told}: nothing was examined\n")
        return 2
    fails = counts[_FAILED] or (every and left_out)
    rest = f", {left_out} point{'s' * (left_out > 1)} left out" if left_out else ""
    sys.stdout.write(f"{told}: it {'does not conform' if fails else 'conforms'}{rest}\n")
    return int(bool(fails))


def main() -> int:
    """Runs the examination; exit code 1 when a point failed, 2 when nothing was examined."""
    parser = argparse.ArgumentParser(prog="python -m producer.conformance", description="docs/conformance.md")
    parser.add_argument("program", nargs="+", metavar="PROGRAM", help="the client program and its arguments")
    parser.add_argument("--url", help="server, as an operator [env: REDIS_URL]")
    parser.add_argument("--queue", help="queue whose workers answer [env: AMN_QUEUE; main]")
    parser.add_argument("--own-queue", help="queue for all but the live points [a random name]")
    parser.add_argument("--only", default="", metavar="TEXT", help="points whose sentence holds this text")
    parser.add_argument("--all", action="store_true", help="a point that is left out is a fault too")
    chosen = parser.parse_args()
    own_queue = chosen.own_queue or f"conformance-{secrets.token_hex(4)}"
    try:
        settings = ProducerSettings.from_environment(url=chosen.url, queue=chosen.queue)
        with driver_errors(settings.url):
            client_url = os.environ.get("AMN_CLIENT_URL", settings.url)
            counts = examine(Case(chosen.program, settings, client_url, own_queue), chosen.only)
    except QueueError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 2
    return conclude(counts, every=chosen.all)


if __name__ == "__main__":
    sys.exit(main())
