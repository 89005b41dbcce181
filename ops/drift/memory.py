"""The judge's state on the server, below `amn:{main}:drift:`.

    judge               hash    `state` (JSON of JudgeState), `findings` (JSON, the last evaluation's),
                                `evaluated_at_ms` (the heartbeat), `fence`; kept 90 days
    block:<number>      string  five minutes, added up (JSON of Block); kept 9 days. The number is the
                                epoch minute divided by five
    counts:<number>     string  the queue's counters at the end of that block (JSON), and beside them
                                `lost_requests` (ops/drift/service/live.py); kept 4 days
    canary              hash    model -> the last result of the frozen set (docs/drift-data.md)
    orders              list    what operators asked for and the judge has not taken up; capped
    audit               list    who re-baselined what, when and why, and what was learned; newest
                                first, capped
    history             stream  see ops/drift/service/history.py
    leader, fence       strings see ops/leader.py

Everything but `orders` and `canary` is written in one step under the leader's fence. What is
longer than anything that we write is not read, and named in the log.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import redis
import structlog

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures.blocks import Block, block_of
from ops.drift.measures.stored import dumps
from ops.drift.state import Evaluation, JudgeState, Order
from ops.findings import Finding
from ops.leader import Command, leader_key, write
from producer.keys import Keys

_LOG = structlog.get_logger("amn.judge")
#: Blocks that are looked at: what a baseline may take in, and a day to judge.
BLOCKS_KEPT = 8 * BLOCKS_PER_DAY
#: Truths come for two hours; a block older than this does not change any more.
_FINAL_AFTER_BLOCKS = 36
#: Minutes of the shadow worker are there for fifty hours.
_MINUTES_BLOCKS = 49 * 60 // BLOCK_MIN
_BLOCK_TTL_S, _COUNTS_TTL_S, _JUDGE_TTL_S = 9 * 86_400, 4 * 86_400, 90 * 86_400
_AUDIT_MAX, _ORDERS_MAX = 200, 100
#: Keys that are read in one round trip.
_KEYS_AT_ONCE, _MINUTES_AT_ONCE = 500, 120
#: Most bytes of a block or a set of counters, of a field of the judge's hash, and of a model's canary.
_TEXT_BYTES_MAX, _FIELD_BYTES_MAX, _CANARY_BYTES_MAX = 4 << 20, 64 << 20, 1 << 20


class Memory:
    """Reads and writes the keys above; remembers what it wrote, so that a minute costs little."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client, self._keys, self._prefix = client, keys, keys.drift_prefix
        self._last: Evaluation | None = None
        self._final: dict[int, Block] = {}
        self._stored: set[int] = set()
        self._counts: dict[int, dict[str, int]] | None = None
        self._read_from = self._orders_read = 0

    def state(self) -> JudgeState:
        """The stored state; a fresh one when there is none.

        Raises:
            ValueError: It was written by another version, or is longer than a judge writes.
        """
        if self._last is not None:
            return copy.deepcopy(self._last.state)
        stored = self._field("judge", "state", _FIELD_BYTES_MAX)
        return JudgeState.from_json(json.loads(stored)) if stored else JudgeState()

    def evaluated_at_ms(self) -> int:
        """Returns the time of the judge's last finished evaluation, by the server's clock; 0 for never."""
        if self._last is not None:
            return self._last.now_ms
        stored = cast("bytes | None", self._client.hget(f"{self._prefix}judge", "evaluated_at_ms"))
        return int(stored or 0)

    def findings(self) -> list[Finding]:
        """Returns the findings of the last evaluation."""
        stored = self._field("judge", "findings", _FIELD_BYTES_MAX)
        return [Finding(**one) for one in json.loads(stored or b"[]")]

    def blocks(self, end_block: int) -> list[Block]:
        """The blocks before `end_block`, oldest first; empty ones where nothing was sampled."""
        first, settled = end_block - BLOCKS_KEPT, end_block - _FINAL_AFTER_BLOCKS
        if self._read_from == 0:  # after a start, what earlier judges stored
            stored = self._strings("block", range(first, end_block))
            self._final = {number: Block.from_json(text) for number, text in stored}
            self._stored = set(self._final)
            self._read_from = end_block - _MINUTES_BLOCKS
        since = max(self._read_from, first)
        minutes: dict[int, list[dict[str, int]]] = {}
        last = end_block * BLOCK_MIN - 1
        for minute, sums in minutes_between(self._client, self._keys, since * BLOCK_MIN, last):
            minutes.setdefault(minute // BLOCK_MIN, []).append(sums)
        fresh = {number: block_of(found) for number, found in minutes.items() if number not in self._stored}
        for number in range(since, settled):
            if number not in self._stored:
                self._final[number] = fresh.get(number, Block())
        self._read_from = settled
        self._final = {number: block for number, block in self._final.items() if number >= first}
        self._stored &= self._final.keys()
        known = {**fresh, **self._final}
        return [known.get(number) or Block() for number in range(first, end_block)]

    def rewind(self, end_block: int, blocks: int) -> None:
        """The server's clock went back by so many blocks: what lay behind `end_block` comes again.

        Blocks whose minutes are counted once more are read anew. The counters at the ends of past blocks
        are renumbered, so that a window goes on to be as long as it says.
        """
        settled = end_block - _FINAL_AFTER_BLOCKS
        self._final = {number: block for number, block in self._final.items() if number < settled}
        self._stored = {number for number in self._stored if number < settled}
        self._read_from = min(self._read_from, settled)
        counts = self.counts(end_block + blocks + 1)
        self._counts = {number - blocks: found for number, found in counts.items()}

    def counts(self, end_block: int) -> dict[int, dict[str, int]]:
        """The queue's counters at the ends of the blocks of the last three days, where known."""
        first = end_block - 3 * BLOCKS_PER_DAY - 1
        if self._counts is None:  # later ones are our own
            found = self._strings("counts", range(first, end_block))
            self._counts = {number: json.loads(text) for number, text in found}
        self._counts = {number: counts for number, counts in self._counts.items() if number >= first}
        return self._counts

    def canary(self, models: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The frozen set's last results by model, as the shadow measuring leaves them."""
        found = {}
        for model in models:
            try:
                text = self._field("canary", model, _CANARY_BYTES_MAX)
            except ValueError as error:
                _LOG.warning("canary_not_read", error=str(error))
                continue
            if text:
                found[model] = json.loads(text)
        return found

    def orders(self) -> list[Order]:
        """Returns the requests of operators, oldest first."""
        found = self._list("orders", _ORDERS_MAX)
        self._orders_read = len(found)
        return [Order(**one) for one in found]

    def order(self, order: Order) -> None:
        """Leaves an order for the judge."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.rpush(f"{self._prefix}orders", dumps(order))
            pipe.ltrim(f"{self._prefix}orders", -_ORDERS_MAX, -1)
            pipe.expire(f"{self._prefix}orders", _JUDGE_TTL_S)
            pipe.execute()

    def audit(self) -> list[dict[str, Any]]:
        """Newest first."""
        return self._list("audit", _AUDIT_MAX)

    def commit(self, fence: int, found: Evaluation) -> bool:
        """Writes an evaluation under the fence, with blocks that became final and counters of one that ended.

        The orders that were read last are done.

        Returns:
            False when another judge leads by now: nothing was written.
        """
        known = self._counts if self._counts is not None else {}
        ended = found.now_ms // 60_000 // BLOCK_MIN - 1
        counts = {} if ended in known else {ended: dict(found.counters)}
        blocks = {n: block for n, block in self._final.items() if n not in self._stored and block.minutes}
        names = "judge", "orders", "audit", "block:", "counts:"
        judge, orders, audit, block, count = (self._prefix + name for name in names)
        fields = ("state", dumps(found.state), "findings", dumps(found.findings))
        commands: list[Command] = [
            ("HSET", judge, *fields, "evaluated_at_ms", found.now_ms, "fence", fence),
            ("EXPIRE", judge, _JUDGE_TTL_S),
            ("LTRIM", orders, self._orders_read, -1),
            *(("LPUSH", audit, dumps(entry)) for entry in found.audit),
            ("LTRIM", audit, 0, _AUDIT_MAX - 1),
            ("EXPIRE", audit, _JUDGE_TTL_S),
        ]
        commands += [("SET", f"{block}{n}", dumps(one), "EX", _BLOCK_TTL_S) for n, one in blocks.items()]
        commands += [("SET", f"{count}{n}", dumps(one), "EX", _COUNTS_TTL_S) for n, one in counts.items()]
        self._last = None  # should the answer be lost, the server knows what was written
        written = write(self._client, leader_key(self._keys), fence, commands)
        if written:
            self._last, self._orders_read = found, 0
            self._stored.update(blocks)
            known.update(counts)
        return written

    def _strings(self, kind: str, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        """Reads the texts that are there; one that is too long is left out, and read no further."""
        found = []
        for at in range(0, len(numbers), _KEYS_AT_ONCE):
            some = numbers[at : at + _KEYS_AT_ONCE]
            with self._client.pipeline(transaction=False) as pipe:
                for number in some:
                    pipe.getrange(f"{self._prefix}{kind}:{number}", 0, _TEXT_BYTES_MAX)
                texts = pipe.execute(raise_on_error=False)
            for number, text in zip(some, texts, strict=True):
                if isinstance(text, redis.ResponseError):
                    continue  # something else has the key's name
                if isinstance(text, Exception):
                    raise text
                if len(text) > _TEXT_BYTES_MAX:
                    _LOG.warning("stored_text_too_long", key=f"{self._prefix}{kind}:{number}")
                elif text:
                    found.append((number, text))
        return found

    def _list(self, name: str, entries_max: int) -> list[Any]:
        key = self._prefix + name
        entries, texts = self._client.llen(key), self._client.lrange(key, 0, entries_max - 1)
        if entries > entries_max:
            _LOG.warning("stored_list_too_long", key=key, entries=entries, read=entries_max)
        return [json.loads(text) for text in cast("list[bytes]", texts)]

    def _field(self, name: str, field: str, bytes_max: int) -> bytes | None:
        """Reads a field of a hash.

        Raises:
            ValueError: It is longer than anything that we write.
        """
        key = self._prefix + name
        length = self._client.hstrlen(key, field)
        if length > bytes_max:
            raise ValueError(
                f"field {field} of {key} has {length:,} bytes; we write {bytes_max:,} at most: "
                "delete it, and the judge begins anew"
            )
        return cast("bytes | None", self._client.hget(key, field)) if length else None


def minutes_between(
    client: redis.Redis, keys: Keys, first: int, last: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Yields `(epoch minute, sums)` of the shadow worker's minutes `first` to `last`, in order.

    Minutes are kept for 50 hours.
    """
    names = cast("list[bytes]", client.zrangebyscore(keys.drift_minutes, first, last))
    found = [int(minute) for minute in names]
    for start in range(0, len(found), _MINUTES_AT_ONCE):
        some = found[start : start + _MINUTES_AT_ONCE]
        with client.pipeline(transaction=False) as pipe:
            for minute in some:
                pipe.hgetall(f"{keys.drift_minute_prefix}{minute}")
            rows = cast("list[dict[bytes, bytes]]", pipe.execute())
        for minute, fields in zip(some, rows, strict=True):
            yield minute, {field.decode(): int(amount) for field, amount in fields.items()}
