"""The circuit breaker, fed with facts and times."""

from __future__ import annotations

import math

from workers.gate.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, TierFacts


def fed(breaker: Breaker, *looks: tuple[float, TierFacts]) -> list[str]:
    return [breaker.update(facts, now_s) for now_s, facts in looks]


def test_a_tier_that_answers_stays_closed():
    breaker = Breaker()
    assert set(fed(breaker, *((t, TierFacts(ok=10 * t, failed=t)) for t in range(60)))) == {CLOSED}
    assert breaker.let_through == math.inf


def test_failures_open_it_a_pause_later_one_request_tries_and_an_answer_closes_it():
    breaker = Breaker()
    assert fed(breaker, (0, TierFacts()), (1, TierFacts(failed=4)), (2, TierFacts(failed=5))) == [
        CLOSED,
        CLOSED,
        OPEN,
    ]
    assert breaker.let_through == 0
    assert breaker.update(TierFacts(failed=5), 6) == OPEN
    assert breaker.update(TierFacts(failed=5), 7.5) == HALF_OPEN
    assert breaker.let_through == 1
    assert breaker.update(TierFacts(failed=5), 8) == HALF_OPEN
    assert breaker.update(TierFacts(failed=5, ok=1), 9) == CLOSED


def test_a_failed_try_opens_it_again():
    breaker = Breaker(pause_s=1)
    fed(breaker, (0, TierFacts()), (1, TierFacts(failed=5)), (3, TierFacts(failed=5)))
    assert breaker.state == HALF_OPEN
    assert breaker.update(TierFacts(failed=6), 4) == OPEN


def test_a_few_failures_among_many_answers_do_not_open_it_and_old_ones_are_forgotten():
    breaker = Breaker()
    assert set(fed(breaker, (0, TierFacts()), (1, TierFacts(ok=100, failed=20)))) == {CLOSED}
    breaker = Breaker()
    looks = [(float(t), TierFacts(failed=t // 5)) for t in range(100)]  # one every five seconds
    assert set(fed(breaker, *looks)) == {CLOSED}


def test_without_a_living_worker_it_is_open_and_as_before_once_there_is_one():
    breaker = Breaker()
    assert fed(breaker, (0, TierFacts(ok=9)), (1, TierFacts(alive=False)), (2, TierFacts(ok=1))) == [
        CLOSED,
        OPEN,
        CLOSED,
    ]


def test_an_entry_that_nobody_answers_opens_it():
    breaker = Breaker()
    assert fed(breaker, (0, TierFacts(lag_ms=29_000)), (1, TierFacts(lag_ms=31_000)), (2, TierFacts())) == [
        CLOSED,
        OPEN,
        CLOSED,
    ]
