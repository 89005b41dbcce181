"""The sample of requests that the shadow worker sees: a pure function of the request."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

#: The card's range; a truth outside the ceiling can belong to no sampled request.
RATE_MIN, RATE_MAX = 0.01, 0.05
#: The same as the "one in k" that adapts: a whole number, so that a sample's weight is one too.
ONE_IN_MIN, ONE_IN_MAX = 20, 100
DEFAULT_SALT = "amn"
_BITS = 56


def sample_key(request_id: str, sequence: str, position: int) -> str:
    """Returns the text to be hashed: the place in the sequence if there is one, else the request id.

    With a sequence, whoever handles position p + 1 can tell whether position p was sampled, so the
    truth finds its prediction without any look-up.
    """
    return f"{sequence}#{position}" if sequence and position >= 0 else request_id


def sample_hash(key: str, salt: str = DEFAULT_SALT) -> int:
    """56 bits of BLAKE2b(key), keyed with the salt; uniform also for sequential ids."""
    return int.from_bytes(_digest(key, salt))


def sampled(key: str, rate: float, salt: str = DEFAULT_SALT) -> bool:
    """True if `key` is in the sample at `rate` (0..1). A lower rate's sample is a subset."""
    return _digest(key, salt) < _threshold(rate)


def one_in(rate: float) -> int:
    """The k of 1/k that is nearest to a rate."""
    return round(1 / rate)


def sampled_one_in(key: str, k: int, salt: str = DEFAULT_SALT) -> bool:
    """True if `key` is in the sample at the rate 1/k. A larger k's sample is a subset."""
    return _digest(key, salt) < threshold_one_in(k)


# Every request is hashed once or twice, so what can be made ready is: a keyed hash to copy, and
# thresholds as bytes, which compare as the numbers do.


def _digest(key: str, salt: str) -> bytes:
    hashed = keyed(salt).copy()
    hashed.update(key.encode())
    return hashed.digest()


@lru_cache(maxsize=16)
def keyed(salt: str) -> blake2b:
    """The hash of keys, to be copied."""
    return blake2b(digest_size=_BITS // 8, key=salt.encode())


@lru_cache(maxsize=256)
def _threshold(rate: float) -> bytes:
    return _as_bytes(int(rate * (1 << _BITS)))


@lru_cache(maxsize=256)
def threshold_one_in(k: int) -> bytes:
    """The digests of what is in the sample at the rate 1/k are below this."""
    return _as_bytes((1 << _BITS) // k)


def _as_bytes(threshold: int) -> bytes:
    """A threshold above all hashes is longer than they are, and so comes after all of them."""
    return b"\xff" * (_BITS // 8 + 1) if threshold >> _BITS else threshold.to_bytes(_BITS // 8)
