"""What an AMN worker asks of each request: is it in the sample, and whose truth does it reveal."""

from __future__ import annotations

from producer.keys import Keys
from producer.messages import Request
from producer.sampling import DEFAULT_SALT, ONE_IN_MAX, one_in, sample_key, sampled_one_in, sieve
from producer.transport.connection import connect, driver_errors
from workers.settings import WorkerSettings
from workers.shadow.rates import Rates, rates_key, read_rates
from workers.side import SideThread

_LOOK_S = 30.0
#: Sequences whose last place an AMN worker remembers.
_PLACES_MAX = 4096


class Sampler:
    """What an AMN worker asks of each request; made to cost little.

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
        self._sieve = sieve(self._least, salt)
        self._places: dict[str, tuple[int, bool]] = {}

    def one_in(self, lane: str, minute: int) -> int:
        """k of the rate 1/k."""
        rates = self.rates
        if rates.shed:
            return ONE_IN_MAX
        known = rates.lanes.get(lane)
        return self._least if known is None else max(known.at(minute), self._least)

    def marks(self, request: Request, minute: int) -> tuple[str, str]:
        """What the shadow stream gets of a request.

        Returns:
            "k key" when it is sampled, at the rate 1/k, and the key whose truth it reveals when that
            may have been: the request before can have been of another lane, or of a time with
            another rate, so that its truth goes at the highest one. Else "".
        """
        if not self.on:
            return "", ""
        sequence, position = request.sequence, request.position
        key = sample_key(request.id, sequence, position)
        mark = truth = ""
        eligible = self._sieve(key)
        if eligible:  # most are not, and need no look at their lane
            k = self.one_in(request.lane, minute)
            if k == self._least or sampled_one_in(key, k, self._salt):
                mark = f"{k} {key}"
        if sequence and position >= 0:
            # Where this worker saw the place before, as a lone worker mostly does, it is hashed already.
            seen, before = self._places.get(sequence, (-1, False))
            if position and (before if seen == position - 1 else self._eligible(sequence, position - 1)):
                truth = sample_key(request.id, sequence, position - 1)
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[sequence] = position, eligible
        return mark, truth

    def _eligible(self, sequence: str, position: int) -> bool:
        return self._sieve(sample_key("", sequence, position))


class SamplerThread:
    """Side thread of an AMN worker: looks up the rates twice a minute.

    Without a server the rates known so far hold.
    """

    def __init__(self, settings: WorkerSettings, sampler: Sampler) -> None:
        self._url = settings.producer.url
        self._sampler = sampler
        self._key = rates_key(Keys(settings.producer.queue))
        self._client = connect(settings.producer, retries=0)
        self._thread = SideThread("sampler", self.look, lambda: _LOOK_S, at_once=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._thread.stop()
        self._client.close()

    def look(self) -> None:
        """One look.

        Raises:
            ServerError: The server is away.
        """
        with driver_errors(self._url):
            self._sampler.rates = read_rates(self._client, self._key)
