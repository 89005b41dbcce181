"""A queue in memory, and the real one beside it: whatever happens, both end in the same state.

The model says what must be true of every accepted request: it waits at one place, or one worker has
it, or it has ended in one way. After each step the server's streams, leases, byte counters, replies
and dead letters are compared with it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from producer.keys import GROUP, Keys
from producer.messages import PRIORITIES, Reply
from producer.options import Options
from producer.protocol import wire
from producer.session.channel import Channel
from producer.session.requests import Outgoing, prepare
from producer.settings import ProducerSettings
from producer.transport.connection import script_text
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import assemble
from workers.engine.outcomes import dead
from workers.engine.queue import LeasedQueue
from workers.engine.reads import load
from workers.settings import QueueSettings, WorkerSettings

KEYS = Keys()
ENTRIES_MAX, FALLBACK_MAX, SECONDARY_MAX, BATCH_MAX = 6, 3, 2, 4
WORKERS = {"amn-1": 1, "amn-2": 1, "fallback": 4, "secondary": 5}  # name -> its first place
ROOM = {1: math.ceil(ENTRIES_MAX * 1.25), 2: ENTRIES_MAX, 3: math.ceil(ENTRIES_MAX / 2)}
FAR_MS = 1e13
ROW = np.eye(768, dtype=np.float32)[0]
ANSWER = Reply(id="", vector=ROW, confidence=0.9, margin=0.1)

ids = st.sampled_from([f"r{n}" for n in range(9)])
clients = st.integers(0, 1)
workers = st.sampled_from(sorted(WORKERS))
endings = st.lists(st.sampled_from(["reply", "escalate", "both", "dead", "expire"]), min_size=1, max_size=4)


@dataclass(eq=False)
class Work:
    """One accepted request, in the model."""

    outgoing: Outgoing
    client: int
    place: int
    holder: str = ""  # the worker that has leased it
    expired: bool = False  # its lease
    deliveries: int = 0
    cancelled: bool = False


@dataclass
class Model:
    """What the server should hold."""

    places: dict[int, list[Work]] = field(default_factory=lambda: {place: [] for place in range(1, 6)})
    seen: dict[str, Work] = field(default_factory=dict)
    finals: Counter[tuple[int, str]] = field(default_factory=Counter)  # (client, id) -> final replies
    ends: Counter[str] = field(default_factory=Counter)  # of accepted requests

    def accepts(self, level: int) -> bool:
        return sum(len(self.places[p]) for p in (1, 2, 3)) + 1 <= ROOM[level]

    def end(self, work: Work, how: str) -> None:
        self.places[work.place].remove(work)
        self.ends[how] += 1
        if how == "cancelled":
            work.cancelled = True
        else:
            self.finals[work.client, work.outgoing.id] += 1

    def escalate(self, work: Work) -> bool:
        to = 4 if work.place < 4 else 5
        if work.place == 5 or len(self.places[to]) >= {4: FALLBACK_MAX, 5: SECONDARY_MAX}[to]:
            return False
        self.places[work.place].remove(work)
        work.place, work.holder, work.expired, work.deliveries = to, "", False, 0
        self.places[to].append(work)
        return True


class QueueMachine(RuleBasedStateMachine):
    """Does the same to both."""

    target: Any = None  # the server; set by the test

    def __init__(self) -> None:
        super().__init__()
        self.admin = self.target.admin
        self.admin.flushall()
        limits: dict[str, Any] = {"entries_max": ENTRIES_MAX, "seen_window_ms": 3_600_000}
        self.producer = ProducerSettings(url=self.target.url, **limits)
        self.sessions = [Channel(self.producer) for _ in range(2)]
        self.submit_script = self.admin.register_script(script_text("producer", "submit"))
        self.cancel_script = self.admin.register_script(script_text("producer", "cancel"))
        self.extend_script = self.admin.register_script(load("extend").text)
        self.queues = {name: self._queue(name, place) for name, place in WORKERS.items()}
        self.hands: dict[str, list[tuple[Entry, Work]]] = {name: [] for name in WORKERS}
        self.model = Model()
        self.sent: list[tuple[int, Outgoing]] = []

    def _queue(self, name: str, place: int) -> LeasedQueue:
        settings = WorkerSettings(
            kind="amn",
            producer=self.producer,
            queue=QueueSettings(
                batch_max=BATCH_MAX,
                block_ms=1,
                lease_ms=3_600_000,
                fallback_entries_max=FALLBACK_MAX,
                secondary_entries_max=SECONDARY_MAX,
            ),
        )
        queue = LeasedQueue(settings, KEYS.requests if place == 1 else KEYS.places[place - 1], name)
        queue.ensure_group()
        return queue

    def teardown(self) -> None:
        for queue in self.queues.values():
            queue.close()

    # -- producers ----------------------------------------------------------------------------

    @rule(client=clients, name=ids, priority=st.sampled_from(PRIORITIES), deadline=st.booleans())
    def submit(self, client: int, name: str, priority: str, deadline: bool) -> None:
        options = Options(request_id=name, priority=priority, deadline_ms=60_000 if deadline else None)
        context = np.tile(ROW, (5, 1))
        outgoing = prepare(context, options, self.sessions[client].client_id, self.producer)
        self.sent.append((client, outgoing))
        known = self.model.seen.get(name)
        if known is not None and not known.cancelled:
            expected = 1 if known.client == client else 0
        elif self.model.accepts(outgoing.level):
            expected = 1
            work = Work(outgoing, client, outgoing.level)
            self.model.places[work.place].append(work)
            self.model.seen[name] = work
        else:
            expected = -1
        assert self._send(client, outgoing) == expected

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat_a_submit_however_late(self, data: Any) -> None:
        client, outgoing = self.sent[data.draw(st.integers(0, len(self.sent) - 1))]
        known = self.model.seen.get(outgoing.id)
        if known is not None and (known.outgoing is outgoing or not known.cancelled):
            assert self._send(client, outgoing) == (1 if known.client == client else 0)

    def _send(self, client: int, outgoing: Outgoing) -> int:
        keys, arguments = self.sessions[client].submit_call([outgoing])
        (status,) = self.submit_script(keys=keys, args=arguments)
        return int(status)

    @precondition(lambda self: self.sent)
    @rule(client=clients, name=ids)
    def cancel(self, client: int, name: str) -> None:
        work = self.model.seen.get(name)
        mine = work is not None and work.client == client
        waits = mine and work in self.model.places[work.place] and not work.holder
        keys, arguments = self.sessions[client].cancel_call(name)
        assert self.cancel_script(keys=keys, args=arguments) == int(waits or (mine and work.cancelled))
        if waits:
            self.model.end(work, "cancelled")

    # -- workers ------------------------------------------------------------------------------

    @precondition(lambda self: any(self.model.places.values()))
    @rule(data=st.data(), block=st.booleans())
    def lease(self, data: Any, block: bool) -> None:
        worker = data.draw(st.sampled_from([w for w in WORKERS if self._has(w)]), "worker")
        queue, mine = self.queues[worker], self._reads(worker)
        over = [work for place in mine for work in self.model.places[place] if work.expired]
        free = {p: [work for work in self.model.places[p] if not work.holder] for p in mine}
        # Looks for expired leases each time, and at all of them: not each quarter of a lease, in turns.
        queue._reclaim_at, queue._reclaim_from = 0.0, []
        # A server ends a wait of a millisecond after up to a hundred: only where there is something.
        entries = queue.lease(block=block and any(free.values()))
        assert len(entries) <= BATCH_MAX
        if over:
            assert len(entries) == min(BATCH_MAX, len(over))
        else:
            assert bool(entries) == any(free.values())
        for entry in entries:
            candidates = [w for w in over if w.place == entry.place] if over else free[entry.place]
            work = next(w for w in candidates if w.outgoing.id.encode() == entry.fields[b"id"])
            if not over:  # in order
                assert work is free[entry.place].pop(0)
            work.holder, work.expired = worker, False
            assert entry.deliveries == work.deliveries + 1
            work.deliveries += not over
            self.hands[worker].append((entry, work))

    @precondition(lambda self: any(self.hands.values()))
    @rule(data=st.data())
    def begin(self, data: Any) -> None:
        """Counts what was taken over, once however often; also late, when it is another worker's."""
        worker = data.draw(st.sampled_from([name for name, hand in self.hands.items() if hand]), "worker")
        again = [(entry, work) for entry, work in self.hands[worker] if entry.deliveries > 1]
        held = [entry for entry, w in again if w in self.model.places[entry.place] and w.holder == worker]
        assert self.queues[worker].begin([entry for entry, _ in again]) == held
        for entry, work in again:
            if entry in held:
                work.deliveries, work.expired = max(work.deliveries, entry.deliveries), False

    def _has(self, worker: str) -> bool:
        """Whether anything is at its places; if only leased by another one."""
        return any(self.model.places[place] for place in self._reads(worker))

    def _reads(self, worker: str) -> tuple[int, ...]:
        return (1, 2, 3) if WORKERS[worker] == 1 else (WORKERS[worker],)

    @precondition(lambda self: any(self.hands.values()))
    @rule(data=st.data(), endings=endings)
    def finish(self, data: Any, endings: list[str]) -> None:
        """Ends some entries; also late, when they are another worker's or long gone."""
        worker = data.draw(st.sampled_from([name for name, hand in self.hands.items() if hand]), "worker")
        hand = self.hands[worker]
        chosen = list(zip(hand, endings, strict=False))
        outcomes, expected, stays = [], [], []
        for (entry, work), how in chosen:
            held = work in self.model.places[entry.place] and work.holder == worker
            outcomes.append(self._outcome(entry, work, how))
            if not held:
                expected.append(b"lost")
            elif how in ("escalate", "both"):
                moved = self.model.escalate(work)
                expected.append(b"ok" if moved else b"full")
                stays += [] if moved else [(entry, work)]
            else:
                self.model.end(work, how)
                expected.append(b"ok")
        assert self.queues[worker].finish(outcomes) == expected
        self.hands[worker] = stays + hand[len(chosen) :]

    def _outcome(self, entry: Entry, work: Work, how: str) -> Outcome:
        request = wire.decode_request(entry.fields[b"request"])
        if how == "dead":
            return dead(entry, request, "test", "ended by the machine")
        if how == "expire" and work.outgoing.deadline_ms:
            (outcome,) = assemble([entry], self.queues["amn-1"].settings, FAR_MS, 0.0).refused
            return outcome
        op = "reply" if how == "expire" else how
        reply = replace(ANSWER, id=request.id, provisional=op in ("escalate", "both"))
        payload = wire.encode_reply(reply)
        return Outcome(entry=entry, op=op, reply_to=request.reply_to, payload=payload)

    @precondition(lambda self: any(self.hands.values()))
    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        self.hands[worker] = []

    @precondition(lambda self: any(self.hands.values()))
    @rule()
    def every_lease_runs_out(self) -> None:
        for stream in KEYS.places:
            for row in self.admin.xpending_range(stream, GROUP, "-", "+", 100):
                held = (row["consumer"], 0, [row["message_id"]])
                self.admin.xclaim(stream, GROUP, *held, idle=7_200_000, justid=True)
        for works in self.model.places.values():
            for work in works:
                work.expired = bool(work.holder)

    @precondition(lambda self: any(self.hands.values()))
    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        held = [w for works in self.model.places.values() for w in works if w.holder == worker]
        in_hand = [entry for entry, _ in self.hands[worker]]
        renewed = 0
        for stream, ids in self.queues[worker].ids(in_hand).items():
            renewed += self.extend_script(keys=[stream], args=[GROUP, worker, *ids])
        known = [work for _, work in self.hands[worker] if work in held]
        assert renewed == len(known)
        for work in known:
            work.expired = False

    @precondition(lambda self: any(self.hands.values()))
    @rule(worker=workers)
    def hand_back(self, worker: str) -> None:
        held = [w for works in self.model.places.values() for w in works if w.holder == worker]
        assert self.queues[worker].release() == len(held)
        self.hands[worker] = []
        for work in held:
            work.holder, work.expired = "released", True

    @precondition(lambda self: len(self.sent) > 8)
    @rule()
    def flush(self) -> None:
        """The server forgets everything; whatever a worker still holds is lost to it."""
        self.admin.flushall()
        self.model = Model()
        for queue in self.queues.values():
            queue.ensure_group()

    # -- what must hold -----------------------------------------------------------------------

    @invariant()
    def every_place_holds_what_the_model_says(self) -> None:
        for place, works in self.model.places.items():
            stream = KEYS.places[place - 1]
            there = [fields[b"id"].decode() for _, fields in self.admin.xrange(stream)]
            assert there == [work.outgoing.id for work in works]
            counted = int(self.admin.get(KEYS.counters[place - 1]) or 0)
            assert counted == sum(len(work.outgoing.payload) for work in works)
            rows = self.admin.xpending_range(stream, GROUP, "-", "+", 100)
            leased = sorted((row["consumer"].decode(), row["times_delivered"]) for row in rows)
            assert leased == sorted((work.holder, work.deliveries) for work in works if work.holder)

    @invariant()
    def every_request_has_one_end(self) -> None:
        for number, session in enumerate(self.sessions):
            finals: Counter[tuple[int, str]] = Counter()
            for _, fields in self.admin.xrange(session.keys.replies(session.client_id)):
                message = wire.decode_reply(fields[b"reply"])
                finals[number, message.id] += not getattr(message, "provisional", False)
            expected = {key: n for key, n in self.model.finals.items() if key[0] == number}
            assert +finals == expected
        stats = {name.decode(): int(n) for name, n in self.admin.hgetall(KEYS.stats).items()}
        accepted = sum(n for name, n in stats.items() if name.startswith("accepted:"))
        live = sum(map(len, self.model.places.values()))
        assert accepted == live + sum(self.model.ends.values())
        assert self.admin.xlen(KEYS.dead) == self.model.ends["dead"]
