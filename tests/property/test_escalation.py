"""The decision, by properties: what rules, budget and breaker may and may not do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amn.gate.escalation import (
    HIGH_STAKES_LANE,
    LONG_CONTEXT,
    LOW_CONFIDENCE,
    SHED_BUDGET,
    SHED_DEADLINE,
    SHED_DOWN,
    SHED_NO_GAIN,
    THIN_MARGIN,
    Allowance,
    Scores,
    decide,
    hard_rules,
    soft_rules,
    threshold_for,
)
from amn.policy import load_policy, presets

cosines = st.floats(-1, 1, width=32)
margins = st.floats(0, 2, width=32)
gains = st.floats(-0.01, 0.01)
lanes = st.sampled_from(["general", "narrative", *load_policy("card").hard.lanes])
tokens = st.integers(0, 1000)
scores = st.builds(Scores, cosines, margins, gains)
policies = st.sampled_from([load_policy(name) for name in presets()])
CARD, CALIBRATED = load_policy("card"), load_policy("calibrated")


@given(policies, scores, cosines, margins, lanes, tokens, st.integers(0, 3), gains)
def test_more_confidence_or_margin_never_turns_an_answer_into_an_escalation(
    policy, low, confidence, margin, lane, count, granted, threshold
):
    """Whatever the policy, the budget and the threshold: all else being equal."""
    high = Scores(max(low.confidence, confidence), max(low.margin, margin), low.gain)

    def escalated(one: Scores) -> bool:
        allowance = Allowance(granted=granted)
        allowance.threshold = threshold
        return decide(policy, allowance, hard_rules(policy, lane, count), one).escalate

    assert escalated(low) or not escalated(high)
    assert set(soft_rules(policy, high)) <= set(soft_rules(policy, low))


@given(
    policies,
    st.lists(st.tuples(scores, lanes, tokens, st.booleans()), max_size=200),
    st.integers(0, 50),
    st.sampled_from([0.0, 1.0, math.inf]),
    gains,
)
@settings(max_examples=100)
def test_flagged_is_escalated_plus_shed_and_soft_ones_never_exceed_what_was_granted(
    policy, requests, granted, doors, threshold
):
    allowance = Allowance(granted=granted)
    allowance.threshold, allowance.breaker_left = threshold, doors
    flagged = escalated = shed = hard_shed = 0
    for one, lane, count, in_time in requests:
        hard = hard_rules(policy, lane, count)
        decision = decide(policy, allowance, hard, one, in_time=in_time)
        assert decision.reasons == (hard or soft_rules(policy, one))
        assert bool(decision.shed) == (bool(decision.reasons) and not decision.escalate)
        flagged += bool(decision.reasons)
        escalated += decision.escalate
        shed += bool(decision.shed)
        hard_shed += bool(hard) and decision.shed in (SHED_BUDGET, SHED_NO_GAIN)
    assert flagged == escalated + shed
    assert escalated == allowance.hard + allowance.soft <= doors
    assert hard_shed == 0  # never for the budget's sake
    assert allowance.seen == len(requests)
    if policy.budget.mode == "enforce":
        assert allowance.soft <= granted


@given(st.lists(gains, min_size=1, max_size=300), st.floats(0.001, 0.999))
def test_a_threshold_lets_through_at_least_its_share_and_not_much_more_when_gains_differ(values, share):
    found = np.array(values)
    through = (found >= threshold_for(found, share)).mean()
    assert through >= share - 1e-9
    if len(set(values)) == len(values):
        assert through <= share + 2 / len(values)


def test_a_threshold_of_everything_and_of_nothing():
    assert threshold_for(np.array([0.1]), 1.0) == -math.inf
    assert threshold_for(np.array([]), 0.1) == -math.inf
    assert threshold_for(np.array([0.1]), 0.0) == math.inf


@pytest.mark.parametrize(
    ("seen", "lane", "count", "reasons"),
    [
        ((0.70, 0.02), "general", 384, ()),
        ((0.69, 0.02), "general", 384, (LOW_CONFIDENCE,)),
        ((0.70, 0.019), "general", 384, (THIN_MARGIN,)),
        ((0.70, 0.02), "general", 385, (LONG_CONTEXT,)),
        ((0.99, 0.5), "med-guideline", 0, (HIGH_STAKES_LANE,)),
        ((0.1, 0.0), "policy/procedure", 900, (HIGH_STAKES_LANE, LONG_CONTEXT)),
        ((0.1, 0.0), "general", 0, (LOW_CONFIDENCE, THIN_MARGIN)),
    ],
)
def test_the_thresholds_are_the_cards_and_hard_rules_come_first(seen, lane, count, reasons):
    decision = decide(CARD, Allowance.unlimited(), hard_rules(CARD, lane, count), Scores(*seen))
    assert decision.reasons == reasons
    assert decision.escalate == bool(reasons)
    assert decision.shed == ""


def test_what_is_shed_before_the_budget_is_asked_spends_nothing():
    flagged = Scores(0.1, 0.0, 0.001)
    for one, in_time, doors, why in (
        (flagged, False, math.inf, SHED_DEADLINE),
        (flagged._replace(gain=0.0), True, math.inf, SHED_NO_GAIN),
        (flagged, True, 0, SHED_DOWN),
    ):
        allowance = Allowance(granted=5)
        allowance.breaker_left = doors
        decision = decide(CALIBRATED, allowance, (), one, in_time=in_time)
        assert (decision.escalate, decision.shed) == (False, why)
        assert (allowance.left, allowance.wanted) == (5, 0)


def test_hard_escalations_do_not_use_up_what_soft_ones_were_granted():
    allowance = Allowance(granted=1)
    assert decide(CALIBRATED, allowance, (HIGH_STAKES_LANE,), Scores()).escalate
    assert decide(CALIBRATED, allowance, (), Scores(0.1, 0.0, 0.001)).escalate
    last = decide(CALIBRATED, allowance, (), Scores(0.1, 0.0, 0.001))
    assert (last.escalate, last.shed) == (False, SHED_BUDGET)


def test_a_budget_that_observes_lets_everything_through_and_says_what_was_beyond_it():
    allowance = Allowance(granted=1)
    observed = replace(CARD)
    found = [decide(observed, allowance, (), Scores(0.1, 0.0)) for _ in range(3)]
    assert [d.escalate for d in found] == [True, True, True]
    assert [d.beyond for d in found] == [False, True, True]
