"""python -m tests.chaos: one run, its table, and exit code 1 when something did not hold."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .harness import Harness
from .settings import CLOCKS, KINDS, ChaosSettings
from .verdict import checks, table


def main() -> int:
    """Reads the command line, runs, judges."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    default = ChaosSettings()
    parser.add_argument("--seed", type=int, default=default.seed, help="of the schedule; replays its faults")
    parser.add_argument("--requests", type=int, default=default.requests, help="send so many at most")
    parser.add_argument("--faults", type=int, default=default.faults, help="inject so many at most")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="send and inject for so long")
    parser.add_argument("--rate", type=float, default=default.rate, help="requests a second")
    parser.add_argument("--every", type=float, default=default.fault_every_s, help="seconds between faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these faults")
    parser.add_argument("--producers", type=int, default=default.producers)
    parser.add_argument("--amn", type=int, default=default.amn, help="AMN workers")
    parser.add_argument("--entries-max", type=int, default=default.entries_max, help="limit of the queue")
    parser.add_argument("--lease-ms", type=int, default=default.lease_ms)
    parser.add_argument("--fsync", choices=("always", "everysec"), default=default.fsync)
    parser.add_argument("--folder", type=Path, help="where the server's files go")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--json", action="store_true", help="the report as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no line for each fault")
    given = parser.parse_args()
    settings = ChaosSettings(
        seed=given.seed, requests=given.requests, faults=given.faults, seconds=given.seconds,
        rate=given.rate, fault_every_s=given.every, kinds=tuple(given.kinds),
        producers=given.producers, amn=given.amn,
        lease_ms=given.lease_ms, entries_max=given.entries_max,
        fsync=given.fsync, folder=given.folder, keep_logs=given.logs,
    )  # fmt: skip
    if not set(CLOCKS) <= set(KINDS):
        _say(f"left out: {', '.join(CLOCKS)} (apt-get install faketime)")
    report = Harness(settings, (lambda _: None) if given.quiet else _say).run()
    found = checks(report)
    text = table(report, found)
    if given.json:
        print(json.dumps(report | {"checks": {check.name: check.held for check in found}}))
    print(text, file=sys.stderr if given.json else sys.stdout)
    if given.logs is not None:
        (given.logs / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    failed = [check.name for check in found if not check.held]
    if failed:
        print(f"chaos: did not hold: {', '.join(failed)}; replay with --seed {given.seed}", file=sys.stderr)
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
