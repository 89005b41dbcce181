"""Batches of contexts in the workers: one outcome a message, rules a row, neighbours untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amn.gate.escalation import REASONS, Allowance, Decision, Scores, soft_rules
from amn.gate.gain import Calibration, Linear
from amn.gate.scores import Columns
from amn.policy import load_policy, parse_policy
from ops.drift.service.live import Service
from ops.drift.service.objectives import OBJECTIVES
from producer import Options, ProducerSettings, Windows
from producer.messages import BatchReply, Failure, Reply, Request
from producer.protocol import wire
from producer.session.requests import prepare_batch
from producer.transport.clock import ServerClock
from workers.engine.entry import Entry, Outcome
from workers.engine.loop import Loop
from workers.engine.microbatch import PORTION_BYTES, assemble, portion
from workers.engine.outcomes import served_fast
from workers.gate.tiers import Tally
from workers.handlers.amn import FALLBACK_ROW_MS, AmnHandler, Gate
from workers.handlers.batches import SHEDS, decide_batch
from workers.handlers.fallback import FAILED, FallbackHandler, Tier
from workers.settings import FALLBACK_MS_MIN, QueueSettings, WorkerSettings

NOW_MS = 1_800_000_000_000.0
SETTINGS = WorkerSettings(kind="amn", queue=QueueSettings(batch_max=8, deliveries_max=3))
CARD = load_policy("card")
GAIN = parse_policy(
    'format = 1\nname = "g"\n[gain]\nmin = 0.25\nrule = true\n[confidence]\nbelow = 0.55\n', "g"
)


def rows(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((count, 5, 768), dtype=np.float32)
    return made / np.linalg.norm(made, axis=2, keepdims=True)


def request(name: str, contexts: np.ndarray, **fields: Any) -> Request:
    return Request(id=name, reply_to="client", context=contexts, submitted_at_ms=NOW_MS, **fields)


def entry(name: str, contexts: np.ndarray, answer: bytes = b"", **fields: Any) -> Entry:
    stored = {b"request": wire.encode_request(request(name, contexts, **fields))}
    return Entry(name.encode() + b"-1", stored | ({b"answer": answer} if answer else {}))


class Bank:
    """A prediction's confidence is the size of its first number; counts what it was asked about."""

    bank_id = "bank@0"

    def __init__(self) -> None:
        self.asked = 0

    def top2(self, vectors: np.ndarray) -> tuple[np.ndarray, ...]:
        self.asked += len(vectors)
        best = np.abs(vectors[:, 0])
        return best, best / 2, np.zeros(len(best), np.intp)


class Last:
    """A model that repeats the newest vector; of contexts that begin with a negative number it makes
    no unit vector."""

    name, model_id = "amn", "amn@0"

    def __init__(self, bank: Bank | None = None) -> None:
        self.bank = bank or Bank()

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        made = contexts[:, -1].copy()
        made[contexts[:, 0, 0] == -1] *= 2
        return made

    predict = forward


def handler(policy: Any = CARD, allowance: Allowance | None = None, bank: Bank | None = None) -> AmnHandler:
    gate = Gate(policy=policy, allowance=allowance or Allowance.unlimited())
    return AmnHandler(Last(bank), gate, SETTINGS)  # type: ignore[arg-type]


def handled(of: Any, *entries: Entry) -> tuple[list[Outcome], list[Any]]:
    outcomes = of.handle(assemble(list(entries), SETTINGS, NOW_MS, 0.0))
    return outcomes, [wire.decode_reply(outcome.payload) for outcome in outcomes]


def test_rows_of_every_request_lie_in_one_buffer():
    one, many, half = rows(1)[0], rows(3, 1), rows(2, 2).astype(np.float16)
    batch = assemble([entry("a", one), entry("b", many), entry("c", half)], SETTINGS, NOW_MS, 0.0)
    assert [batch.rows(i) for i in range(3)] == [slice(0, 1), slice(1, 4), slice(4, 6)]
    expected = np.concatenate([one[None], many, half.astype(np.float32)])
    np.testing.assert_array_equal(batch.contexts, expected)
    part = batch.part(1, 3)
    assert [part.rows(i) for i in range(2)] == [slice(0, 3), slice(3, 5)]
    np.testing.assert_array_equal(part.contexts, expected[1:])


@pytest.mark.parametrize(("spoil", "code"), [(np.nan, "not_finite"), (3.0, "bad_norm")])
def test_a_bad_row_fails_its_message_by_its_number_and_no_other(spoil, code):
    bad = rows(4, 1)
    bad[2, 3] *= spoil
    batch = assemble([entry("a", rows(2)), entry("b", bad), entry("c", rows(1)[0])], SETTINGS, NOW_MS, 0.0)
    assert [r.id for r in batch.requests] == ["a", "c"]
    np.testing.assert_array_equal(batch.contexts, np.concatenate([rows(2), rows(1)]))
    assert [batch.rows(i) for i in range(2)] == [slice(0, 2), slice(2, 3)]
    [outcome] = batch.refused
    failure = wire.decode_reply(outcome.payload)
    assert isinstance(failure, Failure)
    assert (failure.id, failure.code) == ("b", code)
    assert failure.message.startswith("contexts[2]: ")


def test_a_step_takes_small_messages_together_and_large_ones_apart():
    small = entry("a", rows(1)[0])
    assert portion([small] * 200) == 200
    large = Entry(b"1-1", {b"request": bytes(PORTION_BYTES - 1000)})
    assert portion([large, large]) == 1
    assert portion([small, small, large]) == 2
    assert portion([large]) == 1
    assert portion([Entry(b"1-1", {b"request": bytes(PORTION_BYTES + 1)})]) == 1
    # Contexts that share their vectors have few bytes, and take as long as others.
    shared = Windows(vectors=np.eye(104, 768, dtype=np.float16), ends=np.arange(4, 104))
    payload = prepare_batch(shared, Options(), "client", ProducerSettings()).payload
    assert portion([Entry(b"1-1", {b"request": payload})] * 9) == 2


def test_a_batch_gets_the_answers_that_its_contexts_get_by_themselves():
    contexts = rows(40)
    allowance = Allowance.unlimited()
    _, [reply] = handled(handler(allowance=allowance), entry("b", contexts))
    _, singles = handled(handler(), *(entry(f"r{i}", context) for i, context in enumerate(contexts)))
    assert isinstance(reply, BatchReply)
    np.testing.assert_array_equal(reply.vectors, [single.vector for single in singles])
    np.testing.assert_allclose(reply.confidences, [single.confidence for single in singles])
    np.testing.assert_allclose(reply.margins, [single.margin for single in singles])
    assert [reply.reasons(i) for i in range(40)] == [single.reasons for single in singles]
    fired = reply.fired != 0
    assert fired.any()
    np.testing.assert_array_equal(reply.shed_as("batch"), fired)
    assert (reply.model, reply.bank, reply.policy) == (singles[0].model, "bank@0", singles[0].policy)
    # What may come again by itself is counted then.
    assert (allowance.seen, allowance.soft, allowance.hard) == (40 - fired.sum(), 0, 0)


def test_batches_and_single_requests_share_a_call_and_keep_their_order():
    bank = Bank()
    entries = [
        entry("a", rows(1)[0]),
        entry("b", rows(3, 1)),
        entry("c", rows(1, 2)[0]),
        entry("d", rows(2, 3)),
    ]
    outcomes, replies = handled(handler(bank=bank), *entries)
    assert [outcome.entry.id for outcome in outcomes] == [b"a-1", b"b-1", b"c-1", b"d-1"]
    assert [type(reply) for reply in replies] == [Reply, BatchReply, Reply, BatchReply]
    np.testing.assert_array_equal(replies[3].vectors, rows(2, 3)[:, -1])
    np.testing.assert_array_equal(replies[2].vector, rows(1, 2)[0, -1])
    assert bank.asked == 7
    assert {reply.timings.batch_size for reply in replies} == {7}


def test_a_hard_rule_escalates_all_of_a_message_and_asks_for_no_score():
    bank, allowance = Bank(), Allowance.unlimited()
    allowance.breaker_left = 100
    outcomes, replies = handled(
        handler(allowance=allowance, bank=bank),
        entry("a", rows(6), lane="sci-fact"),
        entry("b", rows(2), tokens=10_000, provisional=True),
        entry("c", rows(1)),
    )
    assert [outcome.op for outcome in outcomes] == ["escalate", "both", "reply"]
    assert bank.asked == 1
    assert replies[0].provisional
    assert replies[0].confidence_method == "none"
    assert {replies[0].reasons(i) for i in range(6)} == {("high_stakes_lane",)}
    assert replies[1].fired_by("long_context").all()
    assert (allowance.hard, allowance.breaker_left) == (8, 92)
    names = outcomes[0].counters.split(",")
    assert {"escalated", "reason:high_stakes_lane", "batch:contexts=6"} <= set(names)
    assert "batch:reason:high_stakes_lane=6" in names


def test_the_objective_of_escalations_counts_what_the_budget_counts():
    allowance = Allowance.unlimited()
    outcomes, _ = handled(
        handler(allowance=allowance),
        entry("a", rows(6), lane="sci-fact"),
        entry("b", rows(2)),
        entry("c", rows(1), lane="sci-fact"),
        entry("d", rows(4), priority="low", lane="sci-fact"),  # bulk: no part of this objective
    )
    counters: Counter[str] = Counter(answered=len(outcomes))
    for outcome in outcomes:
        for word in outcome.counters.split(","):
            name, _, amount = word.partition("=")
            counters[name] += int(amount or 1) if name != "answered" else 0
    [fallback] = [one for one in OBJECTIVES if one.rule == "slo_fallback"]
    service = Service(now_ms=0, counters=counters, counts={0: {}})
    assert service.since(2, 1, fallback.bad) == allowance.hard - 4 == 7
    again = counters["batch:shed:batch"]  # answered here; the budget counts them when they come by themselves
    assert service.since(2, 1, fallback.of) == allowance.seen - 4 + again == 9


def test_a_batch_that_found_no_room_counts_as_answered_here():
    outcomes, _ = handled(handler(), entry("a", rows(6), lane="sci-fact"))
    names = served_fast(outcomes[0]).counters.split(",")
    assert "batch:extra=5" in names
    assert not [name for name in names if "escalated" in name]


class Measured:
    """A calibration whose gains need more digits than a float32 has."""

    calibration_id = "gain@0"

    def scorer(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda contexts, predictions: 0.25 + 1e-9 * np.arange(1, len(contexts) + 1)


def test_a_hard_request_in_the_batch_leaves_the_gains_of_the_others_as_they_are():
    policy = parse_policy(
        'format = 1\nname = "g"\n[gain]\nmin = 0.25\nrule = true\n[hard]\nlanes = ["sci-fact"]\n', "g"
    )
    gate = Gate(policy=policy, calibration=Measured())  # type: ignore[arg-type]
    others = [entry("a", rows(1)[0]), entry("b", rows(1, 1)[0])]
    of = AmnHandler(Last(), gate, SETTINGS)  # type: ignore[arg-type]
    alone, _ = handled(of, *others)
    beside, _ = handled(of, *others, entry("c", rows(1)[0], lane="sci-fact"))
    assert [outcome.op for outcome in alone] == [outcome.op for outcome in beside[:2]] == ["escalate"] * 2


@pytest.mark.parametrize(
    ("left_ms", "doors", "shed"),
    [(FALLBACK_MS_MIN + 5 * FALLBACK_ROW_MS - 1, 9, "deadline"), (1e6, 0, "fallback_down")],
)
def test_a_batch_that_cannot_be_escalated_is_answered_and_says_why(left_ms, doors, shed):
    allowance = Allowance.unlimited()
    allowance.breaker_left = doors
    outcomes, [reply] = handled(
        handler(allowance=allowance), entry("a", rows(6), lane="sci-fact", expires_at_ms=NOW_MS + left_ms)
    )
    assert outcomes[0].op == "reply"
    assert not reply.provisional
    assert reply.shed_as(shed).all()
    assert reply.degraded == ("fallback_down" if shed == "fallback_down" else "")
    assert allowance.hard == 0


def test_a_batch_is_never_sampled_nor_counted_as_slow():
    settings = replace(SETTINGS, sample_rate=0.05)
    of = AmnHandler(Last(), Gate(policy=CARD), settings)  # type: ignore[arg-type]
    for i in range(200):
        batch = assemble([entry(f"r{i}", rows(1), domain="d")], settings, NOW_MS + 1e4, 0.0)
        [outcome] = of.handle(batch)
        assert (outcome.sample_key, outcome.truth_key) == ("", "")
        assert "slow" not in outcome.counters.split(",")


def test_a_row_without_a_unit_vector_fails_its_message_alone():
    unsound = rows(3)
    unsound[1, 0] = 0
    unsound[1, 0, 0] = -1
    _, replies = handled(handler(), entry("a", unsound), entry("b", rows(2)))
    assert isinstance(replies[0], Failure)
    assert replies[0].code == "inference_failed"
    assert replies[0].message.startswith("contexts[1]: ")
    assert isinstance(replies[1], BatchReply)


scores = st.one_of(
    st.floats(0, 1), st.sampled_from([0.25, 0.55, float(np.float32(0.55)), 0.02, float(np.float32(0.02))])
)


@given(st.lists(st.tuples(scores, scores, scores), min_size=1, max_size=30), st.sampled_from([CARD, GAIN]))
def test_rules_of_many_rows_are_those_of_each(found, policy):
    columns = Columns(*(np.array(values, np.float32) for values in zip(*found, strict=True)))
    allowance = Allowance.unlimited()
    verdicts = decide_batch(policy, allowance, (), columns)
    assert not verdicts.decision.escalate
    again = 0
    for row, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        one = Scores(*values)
        rules = soft_rules(policy, one)
        assert verdicts.fired[row] == sum(1 << REASONS.index(rule) for rule in rules)
        worth = policy.gain is None or one.gain > policy.gain.min
        expected = ("batch" if worth else "no_gain") if rules else ""
        assert (("", *SHEDS)[verdicts.shed[row]]) == expected
        again += expected == "batch"
    assert allowance.seen == len(found) - again


def test_rows_that_a_file_chose_have_an_account_of_their_own_and_no_limit_stops_them():
    allowance, flagged = Allowance(), Columns(*np.array([[0.1], [0.0], [0.9]], np.float32).repeat(50, axis=1))
    allowance.hard_max = 0
    verdicts = decide_batch(GAIN, allowance, (), flagged, bulk=True)
    assert (allowance.file_seen, set(verdicts.shed.tolist())) == (50, {1 + SHEDS.index("batch")})
    asked = decide_batch(GAIN, allowance, ("asked_for",), Columns(*np.zeros((3, 10))), bulk=True)
    assert asked.decision == Decision(True, ("asked_for",))
    assert (allowance.file_soft, allowance.passed) == (10, 10)
    assert (allowance.seen, allowance.soft, allowance.hard) == (0, 0, 0), "live traffic pays for none of them"
    allowance.breaker_left = 0
    refused = decide_batch(GAIN, allowance, ("asked_for",), Columns(*np.zeros((3, 10))), bulk=True)
    assert refused.decision.shed == "fallback_down"
    live = decide_batch(GAIN, Allowance(), ("asked_for",), Columns(*np.zeros((3, 10))))
    assert live.decision.escalate
    limited = Allowance()
    limited.hard_max = 0
    refused = decide_batch(GAIN, limited, ("asked_for",), Columns(*np.zeros((3, 10))))
    assert refused.decision.shed == "hard_budget"


# -- fallbacks --------------------------------------------------------------------------------------


def escalated(contexts: np.ndarray, **fields: Any) -> Entry:
    outcome = handler().handle(
        assemble([entry("e", contexts, lane="sci-fact", **fields)], SETTINGS, NOW_MS, 0.0)
    )[0]
    return outcome.entry._replace(fields={**outcome.entry.fields, b"answer": outcome.payload})


class First(Last):
    """A fallback that repeats the oldest vector."""

    name, model_id = "gru", "gru@0"

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        made = contexts[:, 0].copy()
        made[contexts[:, 0, 0] == -1] *= 2
        return made


def test_a_fallback_answers_all_rows_of_a_batch_beside_single_requests():
    tally = Tally()
    one = escalated(rows(1, 5)[0])
    outcomes, replies = handled(
        FallbackHandler(First(), Tier(tally=tally)),  # type: ignore[arg-type]
        one,
        escalated(rows(4)),
    )
    assert [outcome.op for outcome in outcomes] == ["reply", "reply"]
    np.testing.assert_allclose(replies[0].vector, rows(1, 5)[0, 0], atol=1e-7)
    reply = replies[1]
    np.testing.assert_allclose(reply.vectors, rows(4)[:, 0], atol=1e-7)
    assert (reply.served_by, reply.model, reply.provisional) == ("gru", "gru@0", False)
    assert reply.tiers["amn@0"][:, 1].tolist() == [0, 0, 0, 0]
    assert reply.tiers["gru@0"][:, 1].tolist() == [1, 1, 1, 1]
    assert reply.fired_by("high_stakes_lane").all()
    assert tally.ok == 5


@pytest.mark.parametrize(("amn", "named"), [("amn@0", "gain@0"), ("amn@other", "none")])
def test_a_fallback_says_by_which_calibration_it_blended_a_batch(amn, named):
    def flat(value: float) -> Linear:
        return Linear(coefficients=np.zeros(0), intercept=value)

    fitted = Calibration(
        calibration_id="gain@0",
        amn=amn,
        fallback="gru@0",
        model=flat(0.01),
        expected=(flat(0.5), flat(0.4)),
        weight_edges=np.array([-1.0]),
        weights=np.array([0.25]),
    )
    tier = Tier(policy=load_policy("calibrated"), calibration=fitted)
    _, [reply] = handled(FallbackHandler(First(), tier), escalated(rows(4)))  # type: ignore[arg-type]
    assert reply.calibration == named
    assert reply.tiers["gru@0"][:, 1].tolist() == [0.25 if named == "gain@0" else 1.0] * 4


def test_a_fallback_that_gives_no_unit_vector_for_a_row_leaves_amns_answer():
    contexts = rows(3)
    contexts[2, 0] = 0
    contexts[2, 0, 0] = -1
    stored = escalated(rows(3)).fields[b"answer"]
    outcomes, [reply, other] = handled(
        FallbackHandler(First()),  # type: ignore[arg-type]
        entry("e", contexts, stored),
        escalated(rows(2, 1)),
    )
    assert (reply.degraded, reply.served_by) == (FAILED, "amn")
    assert f"degraded:{FAILED}" in outcomes[0].counters
    assert other.served_by == "gru"


def test_an_escalated_batch_with_another_number_of_answers_is_dead():
    stored = escalated(rows(3)).fields[b"answer"]
    outcomes, _ = handled(FallbackHandler(First()), entry("e", rows(4), stored))  # type: ignore[arg-type]
    assert (outcomes[0].op, outcomes[0].reason) == ("dead", "undecodable")


def test_a_batch_that_finds_the_fallback_full_says_so_for_all_rows():
    outcome = handler().handle(assemble([entry("e", rows(3), lane="sci-fact")], SETTINGS, NOW_MS, 0.0))[0]
    served = served_fast(outcome)
    reply = wire.decode_reply(served.payload)
    assert isinstance(reply, BatchReply)
    assert (served.op, reply.provisional) == ("reply", False)
    assert reply.shed_as("fallback_full").all()
    assert "answered:amn" in served.counters.split(",")


class Poisoned(Last):
    """Breaks on a context that begins with a two."""

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        if (contexts[:, 1, 0] == 1).any():
            raise RuntimeError("this context breaks the model")
        return super().forward(contexts)


class NoQueue:
    settings = SETTINGS
    name = "nobody"
    low = False
    clock = ServerClock()


def test_a_batch_that_breaks_the_model_ends_alone():
    bad = rows(3)
    bad[1, 1] = 0
    bad[1, 1, 0] = 1
    loop = Loop(NoQueue(), AmnHandler(Poisoned(), Gate(policy=CARD), SETTINGS))  # type: ignore[arg-type]
    entries = [entry("a", rows(2)), entry("b", bad), entry("c", rows(1)[0]), entry("d", rows(5, 1))]
    outcomes = loop._outcomes(entries)
    assert [(o.entry.id, o.op == "dead") for o in outcomes] == [
        (b"a-1", False),
        (b"b-1", True),
        (b"c-1", False),
        (b"d-1", False),
    ]


@pytest.mark.parametrize("fields", [{}, {"lane": "med-guideline"}])
def test_rows_that_are_computed_piece_by_piece_have_the_same_answers(fields):
    entries = [entry("a", rows(70)), entry("b", rows(1, 1)[0]), entry("c", rows(9, 2), **fields)]
    looks: list[int] = []
    found = []
    for between in (None, lambda: looks.append(1)):
        batch = assemble(entries, SETTINGS, NOW_MS, 0.0)
        batch.between = between
        outcomes = handler(GAIN if not fields else CARD).handle(batch)
        replies = [replace(wire.decode_reply(o.payload), timings=None) for o in outcomes]
        found.append(([(o.op, o.counters) for o in outcomes], replies))
    (ops, whole), (others, pieces) = found
    assert (ops, len(looks)) == (others, 6)
    np.testing.assert_equal([vars_of(one) for one in whole], [vars_of(one) for one in pieces])


def vars_of(reply: Any) -> dict[str, Any]:
    return {name: getattr(reply, name) for name in type(reply).__dataclass_fields__}
