"""Settings of the shadow worker, beside those of every worker."""

from __future__ import annotations

from dataclasses import dataclass

#: AMN's latency objective, from the producer's submit to the end of the model's and the gate's work.
SLOW_MS = 1.2
#: Latency objective of bulk work, for which nobody waits.
SLOW_BULK_MS = 60_000.0
#: The lane under which rows of files are summed up, whatever their own: a file that is done in a minute would
#: outweigh a day of live traffic in its lane, and change its sampling rate.
FILES_LANE = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSettings:
    """Slices, the truth join, sampling rates and the retention of the sums.

    Attributes:
        ood_domains: Explicit domains that the model was not trained on; any other named domain is
            in distribution, and a request without one is placed by the OOD score, if there is one.
        half_ttl_ms: How long a prediction waits for its truth.
        halves_max: Cap on waiting predictions; the one that has waited longest makes room.
        truth_ttl_ms: How long a truth waits for its prediction, which is nearly always there first.
        truths_max: Cap on waiting truths. Truths come for all that could have been sampled, so that
            at a low rate most of these wait for nothing: they have a room of their own.
        scored_ttl_ms: How long a scored key is remembered, so that a truth reported twice, or a
            request sent again, is not scored twice.
        file_scored_ttl_ms: The same of a row of a file, which the same file may bring again: as long as the
            sums of its minute are looked at.
        minute_ttl_s: How long a minute's sums are kept, from the minute itself.
        age_min_max: Older predictions are refused.
        samples_per_s: Samples that each lane aims at.
        half_life_min: Of the smoothed traffic that the rates follow.
        hysteresis: Least relative change of a rate.
        canary_ms: The frozen set is sent so often, by one of the shadow workers.
        canary_after_s: Not before a worker is this old: a service that has just started has other
            things to do, and short runs have no canary.
        lag_ms_max: A shadow stream whose oldest entry is older sheds: every lane at the lowest rate.
    """

    ood_domains: frozenset[str] = frozenset({"anarchism"})
    half_ttl_ms: int = 2 * 3600 * 1000
    halves_max: int = 10_000
    truth_ttl_ms: int = 600_000
    truths_max: int = 5_000
    scored_ttl_ms: int = 600_000
    file_scored_ttl_ms: int = 25 * 3600 * 1000
    minute_ttl_s: int = 50 * 3600
    age_min_max: int = 26 * 60
    samples_per_s: float = 0.5
    half_life_min: float = 10.0
    hysteresis: float = 0.2
    canary_ms: int = 3_600_000
    canary_after_s: float = 300.0
    lag_ms_max: int = 60_000

    def slice_of(self, domain: str) -> str:
        """ "ood" or "id" by an explicit domain; "unknown" for a request that names none."""
        if not domain:
            return "unknown"
        return "ood" if domain in self.ood_domains else "id"
