"""The truths of a file for the shadow evaluation: a sample of its rows, sent once more with what came next.

A row is a message of its own, since the shadow trusts only what a worker answered, and the truth comes right
behind it. Both go by a key that is made of the file, the model and the row: who repeats a row group, or a
file, reports nothing twice within the window that the judge looks at.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from hashlib import blake2b
from time import monotonic
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ops.predict.columns import texts
from ops.predict.settings import PredictSettings
from ops.predict.sources import RowGroup
from ops.predict.windows import RowBlock
from producer import BatchHandle, Options, Producer
from producer.errors import DuplicateRequest, QueueError
from producer.keys import Keys
from producer.messages import LANES, TEXT_LENGTH_MAX, Priority
from producer.partitions import Spread
from producer.protocol.checks import are_unit
from producer.sampling import ONE_IN_MAX, sample_key, sampled_one_in
from producer.session.channel import truth_command
from producer.transport.connection import connect, driver_errors

#: With so many samples waiting, the shadow worker is away or behind: live ones need the room that is left.
_WAITING_MAX = 2_000
#: At the end, answers are waited for so long.
_LAST_S = 10.0
_FULL, _UNFIT = "shadow_full", "bad_truth"


def reporting(producer: Producer, settings: PredictSettings) -> AbstractContextManager[TruthReporter | None]:
    """Return the reporter of a run, if its settings want one."""
    if not settings.report_truth:
        return nullcontext()
    return TruthReporter(producer, settings.priority, settings.domain)


class TruthReporter:
    """Reports the truths of a run; a context manager. It never stops the run: what cannot be sent is counted.

    Args:
        producer: Of the service.
        priority: Of its requests.
        domain: Name of the column of domains.

    Attributes:
        sampled: Rows that belong to the sample.
        reported: Of them, those whose answer and truth are with the service.
        repeated: Of these, those that were there already.
        lost: The others, by code.
    """

    def __init__(self, producer: Producer, priority: Priority, domain: str) -> None:
        self.sampled = self.reported = self.repeated = 0
        self.lost: Counter[str] = Counter()
        self._producer, self._domain = producer, domain
        self._options = Options(lane=LANES[0], priority=priority)
        self._sent: deque[BatchHandle] = deque()
        self._stack = ExitStack()
        self._servers: list[tuple[Any, Keys]] = []

    def __enter__(self) -> Self:
        """Look at the shadow's streams for the first time.

        Raises:
            ServerError: The server is away, or this user may not ask how long they are (`amn acl producer`).
        """
        for settings in (channel.settings for channel in self._producer.channels):
            client = self._stack.enter_context(closing(connect(settings)))
            self._servers.append((client, Keys(settings.queue)))
        self._waiting()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def offer(self, source: Mapping[str, Any], group: RowGroup, block: RowBlock, model: str) -> None:
        """Send what the sample holds of a block's rows whose truth is known.

        Args:
            source: What tells the file from another.
            group: The row group that the block is of.
            model: The id of the model that answered.
        """
        of = "|".join(str(part) for part in (source["sha256"], source["bytes"], source["rows"], model))
        sequence = f"file:{blake2b(of.encode(), digest_size=12).hexdigest()}:{group.in_file}"
        salt, start = self._producer.settings.sample_salt, block.first_row - group.first_row
        known = block.good[block.known[block.good]]
        keys = ((row, sample_key("", sequence, start + row)) for row in known.tolist())
        rows = [row for row, key in keys if sampled_one_in(key, ONE_IN_MAX, salt)]
        self.sampled += len(rows)
        if not rows:
            return
        try:
            full = self._waiting() >= _WAITING_MAX
        except QueueError as error:
            self.lost[error.code] += len(rows)
            return
        if full:
            self.lost[_FULL] += len(rows)
            return
        contexts, truths = block.windows.part(np.array(rows)).contexts(), block.beside(block.vectors, 1)[rows]
        good = are_unit(truths)
        self.lost.update({_UNFIT: int((~good).sum())} if not good.all() else {})
        found = zip(rows, self._domains(block, rows), strict=True)
        options = [
            replace(
                self._options,
                domain=domain,
                sequence=sequence,
                position=start + row,
                request_id=f"{sequence}:{start + row}",
            )
            for row, domain in found
        ]
        if good.any():
            fit = [one for one, kept in zip(options, good.tolist(), strict=True) if kept]
            self._send(contexts[good], truths[good], fit)
        self._settle(wait_s=0.0)

    def finish(self) -> dict[str, Any]:
        """Wait a moment for the last answers; returns what was reported, as plain values."""
        self._settle(_LAST_S)
        return {
            "sampled": self.sampled,
            "reported": self.reported,
            "repeated": self.repeated,
            "lost": dict(self.lost),
        }

    def _send(
        self, contexts: NDArray[np.floating], truths: NDArray[np.floating], options: list[Options]
    ) -> None:
        """Send rows of one row group in one round trip, and their truths in another."""
        sequence = options[0].sequence
        client, keys = self._servers[Spread(len(self._servers)).of(sequence)]
        try:
            handles = self._producer.submit_batches(list(contexts[:, None]), options=options)
            with driver_errors(self._producer.settings.url), client.pipeline(transaction=False) as pipe:
                for one, truth in zip(options, truths, strict=True):
                    key = sample_key("", sequence, one.position)
                    pipe.execute_command(*truth_command(keys, key, truth))
                pipe.execute()
            self._sent += handles
        except QueueError as error:
            self.lost[error.code] += len(options)

    def _settle(self, wait_s: float) -> None:
        """Count the answers that are here, or that come in so many seconds."""
        until_s = monotonic() + wait_s
        while self._sent and (wait_s or self._sent[0].done()):
            try:
                self._sent.popleft().result(timeout_ms=1000 * max(until_s - monotonic(), 0.0))
            except DuplicateRequest:
                self.repeated += 1
            except QueueError as error:
                self.lost[error.code] += 1
                continue
            self.reported += 1

    def _domains(self, block: RowBlock, rows: list[int]) -> list[str]:
        """Return what the slices go by: the domains of rows, "" where one has none or it is no name."""
        if self._domain not in block.kept.schema.names:
            return [""] * len(rows)
        column = block.kept.column(self._domain).take(pa.array(rows))
        found = zip(texts(column).tolist(), column.is_valid().to_pylist(), strict=True)
        return [text if valid and len(text) <= TEXT_LENGTH_MAX else "" for text, valid in found]

    def _waiting(self) -> int:
        """Return how many entries wait for the shadow worker, where they are most."""
        with driver_errors(self._producer.settings.url):
            return max(int(client.xlen(keys.shadow)) for client, keys in self._servers)
