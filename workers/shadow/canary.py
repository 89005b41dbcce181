"""The canary: a frozen set of sequences, sent through the live path and compared item by item.

The items never change, so any change of an answer is the model's, the code's or the numerics', and a
drop of the live scores beside a flat canary is the traffic's. They are ordinary requests, with three
things chosen so that they disturb nothing:

- their ids lie outside the 5 % sample and they belong to no sequence: they are in no drift sum;
- their deadline leaves no time for a fallback: the gate never escalates them nor spends its budget;
- there are few, a handful in flight at a time.

Keys are described in docs/drift-data.md.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Self, cast

import numpy as np
import redis
from numpy.typing import NDArray

from amn.data.arrays import load_npz
from amn.errors import FileRefused
from producer import Options, Producer
from producer.errors import QueueError
from producer.keys import Keys
from producer.messages import Reply
from producer.sampling import RATE_MAX, sampled
from producer.session.requests import new_id
from producer.settings import ProducerSettings
from workers.errors import NotReady
from workers.settings import FALLBACK_MS_MIN, shipped
from workers.shadow.scores import cosines

#: Items a slice. Each is compared with itself, so that a change shows however few there are.
PER_SLICE = 64
#: Requests in flight, and how often one that failed is sent again.
_CHUNK, _TRIES = 16, 3
_DEADLINE_MS = 0.9 * FALLBACK_MS_MIN
#: A late one gets a named failure, which may be late itself.
_WAIT_S = 1.0
_RESULTS_TTL_S, _GOLDEN_TTL_S, _RUNS_MAX = 14 * 86_400, 90 * 86_400, 200

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSet:
    """The items.

    Attributes:
        contexts: (N, 5, 768).    truths: (N, 768).    ood: (N,), bool.
    """

    contexts: Vectors
    truths: Vectors
    ood: NDArray[np.bool_]

    @property
    def id(self) -> str:
        """Answers can be compared with those to the same items only."""
        return sha256(self.contexts.tobytes() + self.truths.tobytes()).hexdigest()[:12]

    @classmethod
    def load(cls, path: Path, per_slice: int = PER_SLICE) -> Self:
        """Windows of the shipped sample, evenly spread over its articles.

        Raises:
            NotReady: The file cannot be used.
        """
        try:
            stored = load_npz(path, ("vectors", "article", "article_slice"))
            if stored["vectors"].dtype.kind != "f":
                raise FileRefused(f"its vectors are of type {stored['vectors'].dtype}")
            rows = stored["vectors"].astype(np.float32)
            article, slices = stored["article"], stored["article_slice"]
        except (FileRefused, KeyError) as error:
            raise NotReady(f"the canary's sample {path} cannot be read ({error}); restore it") from error
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        whole = np.flatnonzero(article[:-5] == article[5:])  # windows of 5 + 1 within one article
        ood = slices[article[whole]] == "ood"
        at = np.concatenate([_spread(whole[ood == side], per_slice) for side in (False, True)])
        return cls(
            contexts=rows[at[:, None] + np.arange(5)], truths=rows[at + 5], ood=slices[article[at]] == "ood"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """One run, as docs/drift-data.md describes it.

    Attributes:
        golden: Whether there was an earlier run of this model to compare with.
        max_change: Largest change of an item's cosine to its truth since then.
        max_distance: Largest 1 - cosine of an answer to that of then.
    """

    model: str
    minute: int
    asked: int
    n: int
    other: int
    failed: int
    mean_id: float
    mean_ood: float
    golden: bool
    max_change: float
    max_distance: float


class Canary:
    """Sends the frozen set and keeps the results."""

    def __init__(self, client: redis.Redis, settings: ProducerSettings, items: FrozenSet) -> None:
        self._client, self._items = client, items
        self._settings = replace(settings, client="canary")
        self._prefix = Keys(settings.queue).drift_prefix + "canary"

    def claim(self, every_ms: int) -> bool:
        """Takes the turn, if it is free: then nobody else has it for `every_ms`."""
        turn = f"{self._prefix}:turn"
        if self._client.set(turn, "1", nx=True, px=every_ms):
            return True
        if self._client.pttl(turn) > every_ms:  # of before the server's clock went back: it begins anew
            self._client.pexpire(turn, every_ms)
        return False

    def postpone(self, wait_ms: int) -> None:
        """After a run that came to nothing: the next may be sooner."""
        self._client.pexpire(f"{self._prefix}:turn", wait_ms)

    def run(self) -> CanaryResult | None:
        """Sends, compares, stores; None when no answer came.

        Raises:
            QueueError: The server cannot be used.
        """
        with Producer(settings=self._settings) as producer:
            answers = answers_to(producer, self._items)
        models = Counter(reply.model for reply in answers if reply is not None and reply.served_by == "amn")
        if not models:
            return None
        model, runs = models.most_common(1)[0][0], f"{self._prefix}:runs"
        result = self._compared(model, answers)
        text = json.dumps(asdict(result))
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._prefix, model, text)
            pipe.expire(self._prefix, _RESULTS_TTL_S)
            pipe.lpush(runs, text)
            pipe.ltrim(runs, 0, _RUNS_MAX - 1)
            pipe.expire(runs, _RESULTS_TTL_S)
            pipe.execute()
        return result

    def _compared(self, model: str, answers: Sequence[Reply | None]) -> CanaryResult:
        vectors, ours = np.zeros((len(answers), 768), np.float16), np.zeros(len(answers), np.bool_)
        for i, reply in enumerate(answers):
            if reply is not None and (reply.model, reply.served_by) == (model, "amn"):
                vectors[i], ours[i] = reply.vector, True
        items, found = self._items, _cosines_of(vectors, self._items.truths)
        golden = self._golden(model, vectors if ours.all() else None)
        change = distance = 0.0
        if golden is not None:
            change = float(np.abs(found - _cosines_of(golden, items.truths))[ours].max())
            distance = float((1 - _cosines_of(vectors, golden))[ours].max())
        n, failed = int(ours.sum()), sum(reply is None for reply in answers)
        return CanaryResult(
            model=model,
            minute=self._client.time()[0] // 60,
            asked=len(answers),
            n=n,
            other=len(answers) - failed - n,
            failed=failed,
            mean_id=_mean(found[ours & ~items.ood]),
            mean_ood=_mean(found[ours & items.ood]),
            golden=golden is not None,
            max_change=round(change, 6),
            max_distance=round(max(distance, 0.0), 6),
        )

    def _golden(self, model: str, vectors: NDArray[np.float16] | None) -> NDArray[np.float16] | None:
        """The model's first answers; a first run that is whole becomes them, and has none before it."""
        key = f"{self._prefix}:golden:{model}"
        items, stored = cast("list[bytes | None]", self._client.hmget(key, ["set", "answers"]))
        known = stored is not None and items == self._items.id.encode()
        with self._client.pipeline(transaction=True) as pipe:
            if not known and vectors is not None:
                answers = vectors.astype("<f2").tobytes()
                pipe.hset(key, mapping={"set": self._items.id, "answers": answers})
            pipe.expire(key, _GOLDEN_TTL_S)
            pipe.execute()
        return np.frombuffer(stored, dtype="<f2").reshape(-1, 768) if known and stored else None


def answers_to(producer: Producer, items: FrozenSet) -> list[Reply | None]:
    """The answer to each item; None where none came after some tries."""
    answers: list[Reply | None] = [None] * len(items.contexts)
    for _ in range(_TRIES):
        missing = [i for i, reply in enumerate(answers) if reply is None]
        for at in range(0, len(missing), _CHUNK):
            some = missing[at : at + _CHUNK]
            options = [_options(producer.settings.sample_salt) for _ in some]
            handles = producer.submit_many([items.contexts[i] for i in some], options=options)
            until_s = time.monotonic() + _WAIT_S
            for i, handle in zip(some, handles, strict=True):
                try:
                    answers[i] = handle.result(max(until_s - time.monotonic(), 0.001) * 1000)
                except QueueError:
                    continue
            if not any(answers):
                return answers  # nobody is there; a thousand requests more would not help
    return answers


def sample_file() -> Path:
    """The shipped sample."""
    return shipped("sample/sequences.npz")


def _options(salt: str) -> Options:
    """Options of one request, whose id is outside of every sample."""
    request_id = f"canary.{new_id()}"
    while sampled(request_id, RATE_MAX, salt):
        request_id = f"canary.{new_id()}"
    return Options(request_id=request_id, deadline_ms=_DEADLINE_MS, priority="high")


def _spread(rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """`count` of the rows, evenly; all when there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.intp)]


def _cosines_of(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    return cosines(a.astype(np.float64), b.astype(np.float64))


def _mean(values: NDArray[np.float64]) -> float:
    return round(float(values.mean()), 6) if len(values) else 0.0
