"""The judge's state on the server, below `amn:{main}:drift:`.

    judge               hash    `state` (JSON of JudgeState), `findings` (JSON, the last evaluation's),
                                `evaluated_at_ms` (the heartbeat), `fence`; kept 90 days
    block:<number>      string  five minutes, added up (JSON of Block); kept 9 days. The number is the
                                epoch minute divided by five
    counts:<number>     string  the queue's counters at the end of that block (JSON), and beside them
                                `lost_requests` (ops/drift/service/live.py); kept 4 days
    orders              list    what operators asked for and the judge has not taken up; capped
    audit               list    who re-baselined what, when and why, and what was learned; newest
                                first, capped
    leader, fence       strings see ops/leader.py

Everything but `orders` is written by lua/commit.lua, under the leader's fence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import redis
import structlog

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures.blocks import Block, block_of
from ops.drift.state import Evaluation, JudgeState
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys
from producer.transport.connection import script_text

_LOG = structlog.get_logger("amn.judge")
#: Blocks that are looked at: what a baseline may take in, and a day to judge.
BLOCKS_KEPT = 8 * BLOCKS_PER_DAY
#: Truths come for two hours; a block older than this does not change any more.
_FINAL_AFTER_BLOCKS = 36
#: Minutes of the shadow worker are there for fifty hours.
_MINUTES_BLOCKS = 49 * 60 // BLOCK_MIN
_BLOCK_TTL_S, _COUNTS_TTL_S, _JUDGE_TTL_S = 9 * 86_400, 4 * 86_400, 90 * 86_400
_AUDIT_MAX, _ORDERS_MAX = 200, 100
_KEYS_AT_ONCE = 500
#: More than these is not what a judge wrote: a block or a set of counters, and a field of the judge's hash.
_TEXT_BYTES_MAX, _FIELD_BYTES_MAX = 4 << 20, 64 << 20
#: Minutes fetched in one round trip.
_CHUNK = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A person's wish: take the last `hours` of a model as its measure of health.

    Attributes:
        model: Model id.    hours: 0 for "from now on".
        who, why: For the audit.    at_ms: When it was given.
    """

    model: str
    hours: int
    who: str
    why: str
    at_ms: int


class Memory:
    """Reads and writes the keys above; remembers final blocks, so that a minute costs little."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self._final: dict[int, Block] = {}
        self._stored: set[int] = set()
        self._counts: dict[int, dict[str, int]] = {}
        self._read_from = 0
        self._counts_read = False
        self._commit = client.register_script(script_text("ops.drift", "commit"))

    def state(self) -> JudgeState:
        """The stored state; a fresh one when there is none.

        Raises:
            ValueError: It was written by another version.
        """
        stored = self._field("state")
        return JudgeState.from_json(json.loads(stored)) if stored else JudgeState()

    def evaluated_at_ms(self) -> int:
        """Returns the time of the judge's last finished evaluation, by the server's clock; 0 for never."""
        stored = cast("bytes | None", self._client.hget(self._key("judge"), "evaluated_at_ms"))
        return int(stored or 0)

    def findings(self) -> list[Finding]:
        """Returns the findings of the last evaluation."""
        stored = self._field("findings")
        return [Finding(**one) for one in json.loads(stored or b"[]")]

    def blocks(self, end_block: int) -> list[Block]:
        """The blocks before `end_block`, oldest first; empty ones where nothing was sampled."""
        first = end_block - BLOCKS_KEPT
        if self._read_from == 0:
            self._load(first, end_block)
        settled = end_block - _FINAL_AFTER_BLOCKS
        since = max(self._read_from, first)
        fresh = self._from_minutes(since, end_block)
        self._read_from = settled
        for number in range(since, settled):
            if number not in self._stored:
                self._final[number] = fresh.get(number, Block())
        for number in [number for number in self._final if number < first]:
            del self._final[number]
            self._stored.discard(number)
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
        self.counts(end_block + blocks + 1)
        self._counts = {number - blocks: counts for number, counts in self._counts.items()}

    def counts(self, end_block: int) -> dict[int, dict[str, int]]:
        """The queue's counters at the ends of the blocks of the last three days, where known."""
        first = end_block - 3 * BLOCKS_PER_DAY - 1
        if not self._counts_read:  # later ones are our own
            found = self._strings("counts", range(first, end_block))
            self._counts = {number: json.loads(text) for number, text in found}
            self._counts_read = True
        self._counts = {n: counts for n, counts in self._counts.items() if n >= first}
        return self._counts

    def canary(self) -> dict[str, dict[str, Any]]:
        """The frozen set's last results by model, as the shadow measuring leaves them."""
        found = cast("dict[bytes, bytes]", self._client.hgetall(self._key("canary")))
        return {model.decode("utf-8", "replace"): json.loads(text) for model, text in found.items()}

    def orders(self) -> list[Order]:
        """Returns the requests of operators, oldest first."""
        found = cast("list[bytes]", self._client.lrange(self._key("orders"), 0, -1))
        return [Order(**json.loads(text)) for text in found]

    def order(self, order: Order) -> None:
        """Leaves an order for the judge."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.rpush(self._key("orders"), json.dumps(asdict(order)))
            pipe.ltrim(self._key("orders"), -_ORDERS_MAX, -1)
            pipe.expire(self._key("orders"), _JUDGE_TTL_S)
            pipe.execute()

    def audit(self) -> list[dict[str, Any]]:
        """Newest first."""
        found = cast("list[bytes]", self._client.lrange(self._key("audit"), 0, -1))
        return [json.loads(text) for text in found]

    def commit(self, fence: int, found: Evaluation) -> bool:
        """Writes an evaluation under the fence, with blocks that became final and counters of one that ended.

        Returns:
            False when another judge leads by now: nothing was written.
        """
        fields = {
            "state": json.dumps(found.state.to_json(), separators=(",", ":")),
            "findings": json.dumps([asdict(one) for one in found.findings], separators=(",", ":")),
            "evaluated_at_ms": str(found.now_ms),
        }
        blocks = {n: block for n, block in self._final.items() if n not in self._stored and block.minutes}
        ended = found.now_ms // 60_000 // BLOCK_MIN - 1
        counts = {} if ended in self._counts else {ended: dict(found.counters)}
        arguments: list[Any] = [str(fence), found.orders, _AUDIT_MAX, _JUDGE_TTL_S, len(fields)]
        arguments += [word for pair in fields.items() for word in pair]
        arguments += [len(found.audit), *(json.dumps(entry) for entry in found.audit)]
        arguments.append(len(blocks) + len(counts))
        for number, block in blocks.items():
            arguments += [self._key(f"block:{number}"), block.to_json(), _BLOCK_TTL_S]
        for number, numbers in counts.items():
            arguments += [self._key(f"counts:{number}"), json.dumps(numbers), _COUNTS_TTL_S]
        names = [leader_key(self._keys), *(self._key(name) for name in ("judge", "orders", "audit"))]
        written = bool(self._commit(keys=names, args=arguments))
        if written:
            self._stored.update(blocks)
            self._counts |= counts
        return written

    def _load(self, first: int, end_block: int) -> None:
        """Loads the state that earlier judges stored, after a start."""
        for number, text in self._strings("block", range(first, end_block)):
            self._final[number] = Block.from_json(text)
            self._stored.add(number)
        self._read_from = end_block - _MINUTES_BLOCKS

    def _from_minutes(self, since: int, end_block: int) -> dict[int, Block]:
        minutes: dict[int, list[dict[str, int]]] = {}
        for minute, sums in minutes_between(
            self._client, self._keys, since * BLOCK_MIN, end_block * BLOCK_MIN - 1
        ):
            minutes.setdefault(minute // BLOCK_MIN, []).append(sums)
        return {n: block_of(found) for n, found in minutes.items() if n not in self._stored}

    def _strings(self, kind: str, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        """Reads the texts that are there; one that is too long is left out, and read no further."""
        found = []
        for at in range(0, len(numbers), _KEYS_AT_ONCE):
            some = numbers[at : at + _KEYS_AT_ONCE]
            with self._client.pipeline(transaction=False) as pipe:
                for number in some:
                    pipe.getrange(self._key(f"{kind}:{number}"), 0, _TEXT_BYTES_MAX)
                texts = pipe.execute(raise_on_error=False)
            for number, text in zip(some, texts, strict=True):
                if isinstance(text, redis.ResponseError):
                    continue  # something else has the key's name
                if isinstance(text, Exception):
                    raise text
                if len(text) > _TEXT_BYTES_MAX:
                    _LOG.warning("stored_text_too_long", key=self._key(f"{kind}:{number}"))
                elif text:
                    found.append((number, text))
        return found

    def _field(self, name: str) -> bytes | None:
        """Reads a field of the judge's hash.

        Raises:
            ValueError: It is longer than anything that a judge writes.
        """
        key = self._key("judge")
        length = self._client.hstrlen(key, name)
        if length > _FIELD_BYTES_MAX:
            raise ValueError(
                f"field {name} of {key} has {length:,} bytes; the judge writes {_FIELD_BYTES_MAX:,} at most: "
                "delete it, and the judge begins anew"
            )
        return cast("bytes | None", self._client.hget(key, name)) if length else None

    def _key(self, name: str) -> str:
        return self._keys.drift_prefix + name


def minutes_between(
    client: redis.Redis, keys: Keys, first: int, last: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Yields `(epoch minute, sums)` of the shadow worker's minutes `first` to `last`, in order.

    Minutes are kept for 50 hours.
    """
    found = [
        int(minute) for minute in cast("list[bytes]", client.zrangebyscore(keys.drift_minutes, first, last))
    ]
    for start in range(0, len(found), _CHUNK):
        some = found[start : start + _CHUNK]
        with client.pipeline(transaction=False) as pipe:
            for minute in some:
                pipe.hgetall(f"{keys.drift_minute_prefix}{minute}")
            rows = cast("list[dict[bytes, bytes]]", pipe.execute())
        for minute, fields in zip(some, rows, strict=True):
            yield minute, {field.decode(): int(amount) for field, amount in fields.items()}
