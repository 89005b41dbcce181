"""The policy, by properties: what the budget may and may not do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amn.errors import ConfigError
from amn.escalation import (
    CARD_LANES,
    HIGH_STAKES_LANE,
    LONG_CONTEXT,
    LOW_CONFIDENCE,
    SHED_BUDGET,
    THIN_MARGIN,
    Budget,
    EscalationPolicy,
    decide,
    fired,
    preset,
)

cosines = st.floats(-1, 1, width=32)
margins = st.floats(0, 2, width=32)
lanes = st.sampled_from(["general", "narrative", *sorted(CARD_LANES)])
tokens = st.integers(0, 1000)
traffic = st.lists(st.tuples(cosines, margins, lanes, tokens), max_size=200)


@given(cosines, cosines, margins, margins, lanes, tokens)
def test_more_confidence_or_margin_never_turns_an_answer_into_an_escalation(c1, c2, m1, m2, lane, tokens):
    card = preset("card")
    low = decide(card, None, confidence=min(c1, c2), margin=min(m1, m2), lane=lane, tokens=tokens)
    high = decide(card, None, confidence=max(c1, c2), margin=max(m1, m2), lane=lane, tokens=tokens)
    assert low.escalate or not high.escalate
    assert set(high.reasons) <= set(low.reasons)


@given(traffic, st.floats(0, 1), st.floats(1, 50))
@settings(max_examples=60)
def test_fired_is_escalated_plus_shed_and_the_soft_ones_stay_in_the_budget(requests, rate, burst):
    policy = EscalationPolicy(budget=rate, burst=burst)
    budget = Budget(rate, burst)
    would = escalated = shed = soft_escalated = 0
    for n, (confidence, margin, lane, count) in enumerate(requests, start=1):
        hard, soft = fired(policy, confidence, margin, lane, count)
        decision = decide(policy, budget, confidence=confidence, margin=margin, lane=lane, tokens=count)
        assert decision.reasons == hard + soft
        assert decision.escalate or not hard  # a hard rule is never shed
        assert (decision.shed == SHED_BUDGET) == (bool(soft) and not decision.escalate)
        would += bool(hard or soft)
        escalated += decision.escalate
        shed += bool(decision.shed)
        soft_escalated += decision.escalate and not hard
        assert soft_escalated <= rate * n + burst + 1e-6
    assert would == escalated + shed


@pytest.mark.parametrize(
    ("scores", "lane", "count", "reasons"),
    [
        ((0.70, 0.02), "general", 384, ()),
        ((0.69, 0.02), "general", 384, (LOW_CONFIDENCE,)),
        ((0.70, 0.019), "general", 384, (THIN_MARGIN,)),
        ((0.70, 0.02), "general", 385, (LONG_CONTEXT,)),
        ((0.99, 0.5), "med-guideline", 0, (HIGH_STAKES_LANE,)),
        ((0.1, 0.0), "policy/procedure", 900, (HIGH_STAKES_LANE, LONG_CONTEXT, LOW_CONFIDENCE, THIN_MARGIN)),
    ],
)
def test_the_thresholds_are_the_cards(scores, lane, count, reasons):
    decision = decide(preset("card"), None, confidence=scores[0], margin=scores[1], lane=lane, tokens=count)
    assert decision.reasons == reasons
    assert decision.escalate == bool(reasons)
    assert decision.shed == ""


def test_the_policy_id_names_every_value():
    assert preset("budgeted").policy_id != preset("card").policy_id
    assert EscalationPolicy(margin_min=0.021).policy_id != EscalationPolicy().policy_id
    assert EscalationPolicy().policy_id == EscalationPolicy().policy_id


def test_an_unknown_policy_or_an_impossible_budget_is_refused():
    with pytest.raises(ConfigError, match="budgeted, card"):
        preset("none")
    with pytest.raises(ConfigError, match=r"1\.5"):
        EscalationPolicy(budget=1.5)
