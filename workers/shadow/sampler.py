"""Sampling for the shadow evaluation: requests that belong to it, and truths that they reveal."""

from __future__ import annotations

from producer.messages import Request
from producer.sampling import (
    DEFAULT_SALT,
    ONE_IN_MAX,
    keyed,
    one_in,
    sample_key,
    sampled_one_in,
    threshold_one_in,
)
from workers.settings import WorkerSettings
from workers.shadow.rates import Rates, rates_key, read_rates
from workers.side import SideThread

#: Sequences whose last position an AMN worker remembers.
_POSITIONS_MAX = 4096


class Sampler:
    """Draws the sample of an AMN worker; made to cost little.

    Args:
        rate_max: The highest rate, of lanes that nothing is known of too; 0 for no sampling.
        salt: Of the hash.

    Attributes:
        on: Whether anything is sampled.    rates: As they were last looked up.
    """

    def __init__(self, rate_max: float, salt: str = DEFAULT_SALT) -> None:
        self.rates = Rates()
        self.on = rate_max > 0
        self._least = one_in(rate_max) if rate_max else ONE_IN_MAX
        self._salt = salt
        self._keyed, self._threshold = keyed(salt), threshold_one_in(self._least)
        self._positions: dict[str, tuple[int, str]] = {}

    def one_in(self, lane: str) -> int:
        """k of the rate 1/k."""
        rates = self.rates
        if rates.shed:
            return ONE_IN_MAX
        known = rates.lanes.get(lane)
        return self._least if known is None else max(known.k, self._least)

    def sampled_key(self, request_id: str, sequence: str, position: int) -> str:
        """The sample key if the sample at the highest rate holds it, else ""."""
        key = f"{sequence}#{position}" if sequence and position >= 0 else request_id
        hashed = self._keyed.copy()
        hashed.update(key.encode())
        return key if hashed.digest() < self._threshold else ""

    def marks(self, request: Request) -> tuple[str, str]:
        """Marks what the shadow stream gets of a request.

        Returns:
            "k key" when it is sampled, at the rate 1/k, and the key whose truth it reveals when that
            may have been: the request before can have been of another lane, or of a time with
            another rate, so that its truth goes at the highest one. Else "".
        """
        if not self.on:
            return "", ""
        sequence, position = request.sequence, request.position
        mark = truth = ""
        key = self.sampled_key(request.id, sequence, position)
        if key:  # most are not, and need no look at their lane
            k = self.one_in(request.lane)
            if k == self._least or sampled_one_in(key, k, self._salt):
                mark = f"{k} {key}"
        if sequence and position >= 0:
            # If this worker saw the position before, as a lone worker mostly does, it is hashed already.
            seen, before = self._positions.get(sequence, (-1, ""))
            if position:
                truth = before if seen == position - 1 else self.sampled_key("", sequence, position - 1)
            if len(self._positions) >= _POSITIONS_MAX:
                self._positions.clear()
            self._positions[sequence] = position, key
        return mark, truth

    def file_mark(self, request: Request) -> str:
        """The mark of a row of a file, which is sampled at the lowest rate; "" if it is not."""
        key = sample_key(request.id, request.sequence, request.position)
        return f"{ONE_IN_MAX} {key}" if self.on and sampled_one_in(key, ONE_IN_MAX, self._salt) else ""


class SamplerThread(SideThread):
    """Side thread of an AMN worker: reads the rates twice a minute.

    Without a server the rates known so far hold.
    """

    name = "sampler"
    period_s = 30.0
    at_once = True

    def __init__(self, settings: WorkerSettings, sampler: Sampler) -> None:
        super().__init__(settings)
        self._sampler = sampler

    def take_turn(self, _: float) -> None:
        """Reads the rates."""
        self._sampler.rates = read_rates(self.client, rates_key(self.keys))
