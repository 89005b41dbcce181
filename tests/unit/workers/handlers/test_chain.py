"""The chain: what a fallback worker answers, by which rule, and when it asks the next tier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from amn.gate.gain import Calibration, Linear, blend
from amn.policy import ACCURACY, SECONDARY, Chain, load_policy
from producer.messages import Reply, Request
from producer.protocol import wire
from workers.engine.entry import Entry
from workers.engine.microbatch import assemble
from workers.engine.outcomes import served_fast
from workers.handlers.fallback import FAILED, FallbackHandler, Tier
from workers.settings import WorkerSettings

SETTINGS = WorkerSettings(kind="fallback")
CALIBRATED, CARD = load_policy("calibrated"), load_policy("card")
AMN, GRU = "amn@111111111111", "gru@222222222222"


def unit(seed: int) -> np.ndarray:
    row = np.random.default_rng(seed).normal(size=768).astype(np.float32)
    return row / np.linalg.norm(row)


class Model:
    """A model that always answers the same."""

    name, model_id = "gru", GRU

    def __init__(self, vector: np.ndarray) -> None:
        self.vector = vector

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        return np.repeat(self.vector[None], len(contexts), axis=0)


def calibration(weight: float, *, amn: str = AMN) -> Calibration:
    def flat(value: float) -> Linear:
        return Linear(coefficients=np.zeros(0), intercept=value)

    return Calibration(
        calibration_id="gain@0",
        amn=amn,
        fallback=GRU,
        model=flat(0.01),
        expected=(flat(0.5), flat(0.4)),
        weight_edges=np.array([-1.0]),
        weights=np.array([weight]),
    )


def escalated(**changes: Any) -> tuple[Reply, Entry]:
    """An escalated request; its context is random, and AMN's answer is `unit(1)`."""
    context = np.stack([unit(10 + i) for i in range(5)])
    fast = Reply(
        id="r",
        vector=unit(1),
        confidence=0.5,
        margin=0.01,
        provisional=True,
        model=AMN,
        policy="p@1",
        gain=0.01,
    )
    fast = replace(fast, **changes)
    request = wire.encode_request(Request(id="r", reply_to="c", context=context, expires_at_ms=0))
    return fast, Entry(b"1-1", {b"request": request, b"answer": wire.encode_reply(fast)})


def answer(tier: Tier, vector: np.ndarray, **changes: Any) -> tuple[Any, Reply]:
    _, entry = escalated(**changes)
    handler = FallbackHandler(Model(vector), tier)  # type: ignore[arg-type]
    outcome = handler.handle(assemble([entry], SETTINGS, 0.0, 0.0))[0]
    reply = wire.decode_reply(outcome.payload)
    assert isinstance(reply, Reply)
    return outcome, reply


def test_the_blend_is_the_calibrated_one_and_every_tier_has_its_score():
    tier = Tier(policy=CALIBRATED, calibration=calibration(0.25))
    outcome, reply = answer(tier, unit(2))
    assert outcome.op == "reply"
    np.testing.assert_allclose(
        reply.vector, blend(unit(1)[None], unit(2)[None], np.array([0.25]))[0], atol=1e-6
    )
    assert reply.tiers == {AMN: (0.5, 0.75), GRU: (0.4, 0.25)}
    assert (reply.served_by, reply.model, reply.provisional) == ("gru", GRU, False)
    assert (tier.tally.ok, tier.tally.blended, tier.tally.kept) == (1, 1, 0)
    assert tier.tally.gain_millionths == 10_000


def test_at_weight_zero_the_answer_is_amns_to_the_bit():
    outcome, reply = answer(Tier(policy=CALIBRATED, calibration=calibration(0.0)), unit(2))
    np.testing.assert_array_equal(reply.vector, unit(1))
    assert (reply.served_by, reply.model) == ("amn", AMN)
    assert "answered:amn" in outcome.counters


@pytest.mark.parametrize(
    "tier",
    [
        Tier(policy=CARD),
        Tier(policy=CALIBRATED, calibration=calibration(0.25, amn="amn@other")),
        Tier(policy=CALIBRATED),
    ],
    ids=["card", "calibrated for another model", "uncalibrated"],
)
def test_without_a_calibration_that_fits_the_last_answer_is_final(tier):
    _, reply = answer(tier, unit(2))
    np.testing.assert_allclose(reply.vector, unit(2), atol=1e-6)
    assert reply.served_by == "gru"


def test_a_failed_fallback_degrades_to_the_answer_so_far():
    tier = Tier(policy=CALIBRATED, calibration=calibration(0.25))
    outcome, reply = answer(tier, np.full(768, np.nan, np.float32))
    assert (outcome.op, reply.degraded, reply.served_by) == ("reply", FAILED, "amn")
    np.testing.assert_array_equal(reply.vector, unit(1))
    assert (tier.tally.ok, tier.tally.failed) == (0, 1)


def test_a_model_that_raises_counts_as_failed_once_the_culprit_is_alone():
    class Raises(Model):
        def forward(self, contexts: np.ndarray) -> np.ndarray:
            raise RuntimeError("out of memory")

    tier = Tier(policy=CARD)
    batch = assemble([escalated()[1], escalated()[1]], SETTINGS, 0.0, 0.0)
    handler = FallbackHandler(Raises(unit(2)), tier)  # type: ignore[arg-type]
    for part, failed in ((batch, 0), (batch.part(0, 1), 1)):
        with pytest.raises(RuntimeError):
            handler.handle(part)
        assert tier.tally.failed == failed


def test_a_failed_fallback_hands_on_to_a_secondary_that_is_up():
    tier = Tier(policy=CALIBRATED, calibration=calibration(0.25), next_is_up=lambda: True)
    outcome, reply = answer(tier, np.full(768, np.nan, np.float32))
    assert (outcome.op, outcome.counters) == ("escalate", "escalated:secondary")
    np.testing.assert_array_equal(reply.vector, unit(1))


def test_answers_that_disagree_go_on_only_when_the_policy_says_so():
    up = {"calibration": calibration(0.25), "next_is_up": lambda: True}
    choosy = replace(CALIBRATED, chain=Chain(tiers=(ACCURACY, SECONDARY), agreement_min=0.5))
    assert answer(Tier(policy=CALIBRATED, **up), unit(2))[0].op == "reply"
    outcome, so_far = answer(Tier(policy=choosy, **up), unit(2))
    assert outcome.op == "escalate"
    assert so_far.tiers[GRU][1] == 0.25  # the blend is the best answer so far
    assert answer(Tier(policy=choosy, **up), unit(1))[0].op == "reply"


def test_a_secondary_stands_in_for_a_tier_that_failed_and_else_is_averaged():
    secondary = Tier(
        name=SECONDARY, policy=CALIBRATED, calibration=calibration(0.25), next_is_up=lambda: True
    )
    outcome, alone = answer(secondary, unit(2))
    np.testing.assert_allclose(alone.vector, unit(2), atol=1e-6)
    assert outcome.op == "reply"
    earlier = {AMN: (0.5, 0.75), "other@1": (0.4, 0.25)}
    _, averaged = answer(secondary, unit(2), tiers=earlier)
    np.testing.assert_allclose(
        averaged.vector, blend(unit(1)[None], unit(2)[None], np.array([0.5]))[0], atol=1e-6
    )
    assert {model: weight for model, (_, weight) in averaged.tiers.items()} == {
        AMN: 0.375,
        "other@1": 0.125,
        GRU: 0.5,
    }


def test_a_full_secondary_stream_leaves_the_answer_so_far_and_counts_no_shed():
    tier = Tier(policy=CALIBRATED, calibration=calibration(0.25), next_is_up=lambda: True)
    outcome, _ = answer(tier, np.full(768, np.nan, np.float32))
    served = served_fast(outcome)
    reply = wire.decode_reply(served.payload)
    assert (served.op, served.counters) == ("reply", "answered,answered:amn")
    assert isinstance(reply, Reply)
    assert (reply.provisional, reply.shed) == (False, "")


def test_an_escalation_without_its_amn_answer_is_a_dead_letter():
    _, entry = escalated()
    entry.fields[b"answer"] = b"\x00"
    outcome = FallbackHandler(Model(unit(2))).handle(assemble([entry], SETTINGS, 0.0, 0.0))[0]  # type: ignore[arg-type]
    assert (outcome.op, outcome.reason) == ("dead", "undecodable")
