"""Chooses the partition of a request, without I/O.

A queue of N partitions is N queues, `<queue>.p0` to `<queue>.p<N-1>`, each with keys, limits, workers
and budget of its own. In a cluster their hash tags spread them over the nodes.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from zlib import crc32

from producer.errors import InvalidSettings
from producer.options import Options

PARTITIONS_MAX = 1024
#: Requests whose partition is remembered; a stream of `predict_many` has as many of its own.
REMEMBERED_MAX = 65_536


def partition_queues(queue: str, partitions: int) -> tuple[str, ...]:
    """The names of the partitions of `queue`."""
    if type(partitions) is not int or not 1 <= partitions <= PARTITIONS_MAX:
        raise InvalidSettings(f"partitions is {partitions!r:.80}; use 1 to {PARTITIONS_MAX}")
    return tuple(f"{queue}.p{number}" for number in range(partitions))


class Spread:
    """Chooses partitions, and remembers the last choices for cancels and truths."""

    def __init__(self, partitions: int) -> None:
        self._count = partitions
        self._turns = itertools.cycle(range(partitions))
        #: A long stream of `predict_many` does not drive the other requests out.
        self._sent: OrderedDict[str, int] = OrderedDict()
        self._streamed: OrderedDict[str, int] = OrderedDict()

    def parts(self, options: Sequence[Options] | Options, count: int) -> dict[int, list[int]]:
        """The numbers of some requests, by their partition.

        All requests of a sequence share one, so that each finds its truth there. A request with an id
        of the caller's has always the same, so that two producers that send it send one request. The
        others take turns.
        """
        parts: dict[int, list[int]] = {}
        for number in range(count):
            option = options if isinstance(options, Options) else options[number]
            name = option.sequence or option.request_id
            parts.setdefault(self.of(name) if name else next(self._turns), []).append(number)
        return parts

    def of(self, name: str) -> int:
        """The partition of a sequence or a caller's id: CRC-32 of its UTF-8, modulo their number."""
        return crc32(name.encode()) % self._count

    def note(self, request_ids: Iterable[str], partition: int, *, streamed: bool = False) -> None:
        """Notes where requests went."""
        table = self._streamed if streamed else self._sent
        table.update(dict.fromkeys(request_ids, partition))
        while len(table) > REMEMBERED_MAX:
            table.popitem(last=False)

    def where(self, request_id: str) -> int:
        """Returns the partition that a request went to, by its name alone if it was not sent from here.

        Args:
            request_id: Its id, or its place in a sequence as `sampling.sample_key` writes it.
        """
        found = self._sent.get(request_id, self._streamed.get(request_id))
        return self.of(request_id.rpartition("#")[0] or request_id) if found is None else found
