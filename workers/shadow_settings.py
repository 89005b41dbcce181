"""What the shadow worker can be told, beside what every worker can."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSettings:
    """Slices, the truth join and the retention of the sums.

    Attributes:
        ood_domains: Explicit domains that the model was not trained on; any other named domain is
            in distribution, and a request without one is in neither slice.
        half_ttl_ms: How long a prediction waits for its truth, or a truth for its prediction.
        halves_max: Cap on waiting halves; the one that has waited longest makes room.
        scored_ttl_ms: How long a scored key is remembered, so that a truth reported twice, or a
            request sent again, is not scored twice.
        minute_ttl_s: How long a minute's sums are kept, from the minute itself.
    """

    ood_domains: frozenset[str] = frozenset({"anarchism"})
    half_ttl_ms: int = 2 * 3600 * 1000
    halves_max: int = 20_000
    scored_ttl_ms: int = 600_000
    minute_ttl_s: int = 50 * 3600

    def __post_init__(self) -> None:
        for name in ("half_ttl_ms", "halves_max", "scored_ttl_ms", "minute_ttl_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def slice_of(self, domain: str) -> str:
        """ "ood", "id", or "unknown" for a request that names no domain."""
        if not domain:
            return "unknown"
        return "ood" if domain in self.ood_domains else "id"
