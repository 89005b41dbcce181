"""The settings of the judge, each value with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """Thresholds of the rules. Cosines have no unit; "se" is standard errors.

    Attributes:
        card_strict: The card's sentence and nothing else: `ood_delta` fires when the delta of 24 h
            lies more than `drop_page` below that of the 24 h before. No error, no minimum, no latch.
        drop_page: Drop of the delta, or of the mean in distribution, that wakes somebody up.
        level_ood_page: The same of the mean out of distribution: it moves more by itself.
        share_lasting: Part of a drop that must still be there in the last hours; below it, the
            drop is over.
        ticket_se: A drop of `drop_page` this sure, and not sure enough for a page, is a ticket.
        pages_per_year: False pages that all drift rules together may give in a year.
        requests_min: Effective requests a slice within 24 h, below which the 24 h rules are silent.
        coverage_min: Share of the sampled requests whose truth must have come.
        minutes_min: Share of the window's minutes that must have data.
        recent_error: Standard error of the delta that makes a recent window long enough.
        learn_min_h, learn_max_h: A baseline is taken after the least, and taken again each day up
            to the most, while nothing fires; then it is frozen.
        learn_requests_min: Effective requests a slice that a baseline needs.
        recovered_min: A drop must be gone for this long before a rule rests.
        firing_min: A rule that fired does so for this long at least.
        closed_after_min: A block is judged by the fast detector this long after its end, so that
            its truths can come; the 24 h rules count late ones whenever they come.
        canary_ticket, canary_page: Change of a canary mean: numerics, or a different model.
        divergence_ticket: Jensen-Shannon divergence of the input histogram over 24 h, bits.
        divergence_page: The same of the OOD scores over minutes; 1 is "nowhere alike".
        recent_inputs_min: Scored inputs that such minutes need.
        share_ratio_ticket: Factor by which the OOD share may grow.
        sample_min, sample_max: The card's range of the realised sampling rate.
        lag_ticket_ms: Age of the oldest shadow entry.
        silent_ticket_min: Too little data for this long is a ticket.
        events_min: Requests that a burn rate's short window needs.
    """

    card_strict: bool = False
    drop_page: float = 0.03
    level_ood_page: float = 0.05
    share_lasting: float = 0.5
    ticket_se: float = 2.5
    pages_per_year: float = 1.0
    requests_min: int = 1_000
    coverage_min: float = 0.8
    minutes_min: float = 0.9
    recent_error: float = 0.006
    learn_min_h: int = 24
    learn_max_h: int = 168
    learn_requests_min: int = 3_000
    recovered_min: int = 30
    firing_min: int = 30
    closed_after_min: int = 3
    canary_ticket: float = 0.001
    canary_page: float = 0.01
    divergence_ticket: float = 0.05
    divergence_page: float = 0.5
    recent_inputs_min: int = 300
    share_ratio_ticket: float = 2.0
    sample_min: float = 0.01
    sample_max: float = 0.05
    lag_ticket_ms: int = 60_000
    silent_ticket_min: int = 24 * 60
    events_min: int = 1_000
