"""What a run is told, and the schedule of faults that a seed stands for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.needs import faketime

ROOT = Path(__file__).resolve().parents[2]

#: Kinds of fault, and how many of each are in a deck of all.
WEIGHTS = {
    "kill_worker": 5,
    "term_worker": 2,
    "stall_worker": 8,
    "rolling_restart": 1,
    "kill_producer": 6,
    "fork": 3,
    "kill_server": 4,
    "stall_server": 4,
    "freeze_server": 1,
    "drop_clients": 6,
    "cut_replies": 6,
    "read_cut": 4,
    "out_of_memory": 4,
    "flush": 1,
    "poison": 7,
    "segv": 2,
    "hang": 1,
    "hostile": 2,
    "fill_queue": 3,
    "fill_fallback": 2,
    "server_clock": 2,
    "worker_clock": 2,
}
#: These need libfaketime (tests/needs.py), and are left out where it is missing.
CLOCKS = ("server_clock", "worker_clock")
KINDS = tuple(kind for kind in WEIGHTS if faketime() or kind not in CLOCKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSettings:
    """One run.

    Attributes:
        seed: Of the schedule: kinds, gaps, durations and choices. What the machine does in between
            is not repeatable, so that a replay meets the same faults and not the same instants.
        requests: Sending stops after so many, all producers together.
        faults: Injecting stops after so many.
        seconds: Sending and injecting stop after this.
        rate: Requests a second, all producers together; late ones are made up for.
        fault_every_s: Mean gap between two faults.
        kinds: Only these; few of one kind, far apart, measure a recovery that nothing disturbs.
        producers: Producer processes; every second one is the asyncio producer.
        amn, fallback, shadow: Workers of each kind.
        lease_ms: Of every worker.
        stall_ms: After which a worker that makes no step ends itself; more than a try to reach a
            frozen server takes.
        fallback_entries_max: Escalations that may wait; small, so that a stopped fallback meets it.
        entries_max: Entries that may wait before QueueFull; small, so that a burst meets it.
        seen_window_ms: How long an id is remembered; a submit is repeated for half of it.
        fsync: "always": what was acknowledged survives a killed server, and the checks are exact.
            "everysec": the server may hold back its writes while a sync runs, so that a kill can
            take the last second or two with it, of requests as well as of finishes; then lost and
            doubled requests are shown, and do not fail the run.
        folder: Where the server's files go; None for the system's temporary folder.
        keep_logs: Copy the logs here at the end; a run that fails always keeps them.
    """

    seed: int = 1
    requests: int = 1_000_000
    faults: int = 1_000_000
    seconds: float = 240.0
    rate: float = 400.0
    fault_every_s: float = 0.4
    kinds: tuple[str, ...] = KINDS
    producers: int = 2
    amn: int = 2
    fallback: int = 1
    shadow: int = 1
    lease_ms: int = 800
    stall_ms: int = 6_000
    fallback_entries_max: int = 60
    entries_max: int = 600
    seen_window_ms: int = 10_000
    fsync: str = "always"
    artifacts: Path = ROOT / "artifacts"
    folder: Path | None = None
    keep_logs: Path | None = None

    @property
    def hard_limit_s(self) -> float:
        """No run lives longer than this, whatever hangs."""
        return self.seconds + 480.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of the schedule.

    Attributes:
        number: From 0.    kind: One of KINDS.    gap_s: Since the one before.
        choice: In [0, 1): which worker, which poison, which producer.
        extent: In [0, 1): how long, or how much.
    """

    number: int
    kind: str
    gap_s: float
    choice: float
    extent: float


def schedule(seed: int, every_s: float, kinds: Sequence[str] = KINDS) -> Iterator[Fault]:
    """Endless. Each kind once, in random order; then shuffled decks, so that proportions hold."""
    rng = random.Random(seed)
    number, deck = 0, list(kinds)
    while True:
        rng.shuffle(deck)
        for kind in deck:
            gap_s = every_s * (0.5 + rng.random())
            yield Fault(number=number, kind=kind, gap_s=gap_s, choice=rng.random(), extent=rng.random())
            number += 1
        deck = [kind for kind in kinds for _ in range(WEIGHTS[kind])]
