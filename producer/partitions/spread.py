"""Which partition a request belongs to. No I/O: the two partitioned producers share it.

A queue of N partitions is N queues, `<queue>.p0` to `<queue>.p<N-1>`, each with keys, limits, workers
and budget of its own. In a cluster their hash tags spread them over the nodes.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from zlib import crc32

from producer.errors import InvalidSettings
from producer.session.inflight import REMEMBERED_MAX
from producer.session.requests import Options

PARTITIONS_MAX = 1024


def partition_queues(queue: str, partitions: int) -> tuple[str, ...]:
    """The names of the partitions of `queue`.

    Raises:
        InvalidSettings: There are none, or too many.
    """
    if type(partitions) is not int or not 1 <= partitions <= PARTITIONS_MAX:
        raise InvalidSettings(f"partitions is {partitions!r:.80}; use 1 to {PARTITIONS_MAX}")
    return tuple(f"{queue}.p{number}" for number in range(partitions))


class Spread:
    """Chooses partitions, and remembers the last choices for cancels and truths."""

    def __init__(self, partitions: int) -> None:
        self._count = partitions
        self._turns = itertools.cycle(range(partitions))
        self._placed: OrderedDict[str, int] = OrderedDict()
        self._streamed: OrderedDict[str, int] = OrderedDict()

    def of(self, options: Options) -> int:
        """The partition of a request.

        All requests of a sequence share one, so that each finds its truth there. A request with an id
        of the caller's has always the same, so that two producers that send it send one request. The
        others take turns.
        """
        name = options.sequence or options.request_id
        return self.of_name(name) if name else next(self._turns)

    def of_name(self, name: str) -> int:
        """The partition of a sequence or a caller's id: CRC-32 of its UTF-8, modulo their number."""
        return crc32(name.encode()) % self._count

    def groups(self, options: Iterable[Options]) -> dict[int, list[int]]:
        """Indices of the requests of each partition, in order."""
        found: dict[int, list[int]] = {}
        for index, option in enumerate(options):
            found.setdefault(self.of(option), []).append(index)
        return found

    def placed(self, request_ids: Iterable[str], partition: int) -> None:
        """Notes where requests went."""
        for request_id in request_ids:
            self._placed[request_id] = partition
        while len(self._placed) > REMEMBERED_MAX:
            self._placed.popitem(last=False)

    def streamed(self, request_id: str, partition: int) -> None:
        """The same of one of `predict_many`: a long stream does not drive the others out."""
        self._streamed[request_id] = partition
        if len(self._streamed) > REMEMBERED_MAX:
            self._streamed.popitem(last=False)

    def where(self, request_id: str) -> int:
        """Where a request went; for one that was not sent from here, where its id alone puts it."""
        found = self._placed.get(request_id, self._streamed.get(request_id))
        return self.of_name(request_id) if found is None else found
