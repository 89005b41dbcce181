"""The gate in a worker, and the tools that look at it: scores, decision log, replay, explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from amn.bank.bank import Neighbours
from amn.errors import ConfigError
from amn.gate.escalation import Allowance, Scores, decide
from amn.gate.scores import GateScores, mean_top_k
from amn.policy import ConfidenceRule, load_policy, parse_policy
from ops.app import app
from ops.errors import FileRefused
from ops.gate.backtest import backtest
from ops.gate.day import DaySettings, simulate
from ops.gate.log import read_log
from producer.messages import Reply, Request
from producer.protocol import wire
from workers.engine.entry import Entry
from workers.engine.microbatch import assemble
from workers.handlers.amn import AmnHandler, Gate, counters_of
from workers.handlers.decisions import DecisionLog
from workers.settings import WorkerSettings

SETTINGS = WorkerSettings(kind="amn", sample_rate=0.0)
CARD = load_policy("card")
#: Scores of a bank look at predictions alone.
NO_CONTEXTS = np.empty((0, 5, 768), np.float32)
ARTIFACTS = Path("artifacts/lvm")


class Bank:
    """Unit axes; counts how many rows it was asked about."""

    bank_id = "bank@0"
    vectors = np.eye(768, dtype=np.float32)
    multiplicity = np.array([2] + [1] * 767)

    def __init__(self) -> None:
        self.asked = 0

    def top2(self, predictions: np.ndarray) -> Neighbours:
        self.asked += len(predictions)
        ids = predictions.argmax(axis=1)
        best = np.sort(predictions, axis=1)
        return Neighbours(best[:, -1], best[:, -2], ids)


class Last:
    """A model that repeats the newest vector."""

    name, model_id = "amn", "amn@0"

    def __init__(self, bank: Bank | None) -> None:
        self.bank = bank

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(contexts[:, -1])


def entry(n: int, lane: str = "general", **fields: Any) -> Entry:
    rows = np.random.default_rng(n).normal(size=(5, 768)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    request = Request(id=f"r{n}", reply_to="c", context=rows, lane=lane, **fields)
    return Entry(f"{n}-1".encode(), {b"request": wire.encode_request(request)})


def handled(gate: Gate, bank: Bank | None, *entries: Entry) -> list[Reply]:
    handler = AmnHandler(Last(bank), gate, SETTINGS)  # type: ignore[arg-type]
    outcomes = handler.handle(assemble(list(entries), SETTINGS, 0.0, 0.0))
    replies = [wire.decode_reply(outcome.payload) for outcome in outcomes]
    assert all(isinstance(reply, Reply) for reply in replies)
    return replies  # type: ignore[return-value]


def test_a_request_that_a_hard_rule_decides_pays_for_no_search():
    bank = Bank()
    replies = handled(Gate(policy=CARD), bank, entry(1, "sci-fact"), entry(2), entry(3, tokens=385))
    assert bank.asked == 1
    assert [reply.confidence_method for reply in replies] == ["none", "top1", "none"]
    assert [reply.bank for reply in replies] == ["", "bank@0", ""]
    assert replies[0].reasons == ("high_stakes_lane",)
    assert replies[1].confidence > 0
    alone = handled(Gate(policy=CARD), Bank(), entry(2))[0]
    assert (replies[1].confidence, replies[1].margin) == (alone.confidence, alone.margin)


def test_a_batch_of_hard_requests_alone_asks_for_nothing():
    bank = Bank()
    assert all(reply.provisional for reply in handled(Gate(policy=CARD), bank, entry(1, "sci-fact")))
    assert bank.asked == 0


def test_a_policy_without_bank_rules_needs_no_bank_and_one_with_them_says_so():
    bankless = parse_policy('format = 1\nname = "x"\n', "x")
    reply = handled(Gate(policy=bankless), None, entry(1))[0]
    assert (reply.reasons, reply.confidence, reply.confidence_method) == ((), 0.0, "none")
    with pytest.raises(ConfigError, match="needs a reference bank"):
        AmnHandler(Last(None), Gate(policy=CARD), SETTINGS)  # type: ignore[arg-type]


def test_while_the_fallback_is_down_amn_answers_and_says_that_it_stands_in():
    allowance = Allowance.unlimited()
    allowance.breaker_left = 0
    reply = handled(Gate(policy=CARD, allowance=allowance), Bank(), entry(1, "sci-fact"))[0]
    assert (reply.provisional, reply.shed, reply.degraded) == (False, "fallback_down", "fallback_down")
    assert reply.served_by == "amn"


def test_a_breaker_that_opens_while_a_request_is_decided_stays_open():
    class Meanwhile(Allowance):
        """The settling thread closes the door between a decision's look and its count."""

        @property
        def passed(self) -> int:
            return self.count

        @passed.setter
        def passed(self, count: int) -> None:
            if count:
                self.breaker_left = 0
            self.count = count

    allowance = Meanwhile(granted=10)
    handled(Gate(policy=CARD, allowance=allowance), Bank(), entry(1, "sci-fact"))
    assert allowance.breaker_left < 1


def test_counters_add_up_flagged_is_escalated_plus_shed():
    allowance = Allowance(granted=2)
    policy = load_policy("calibrated")
    names: list[str] = []
    for gain in (0.001, 0.001, 0.001, 0.0):
        names += counters_of(decide(policy, allowance, (), Scores(0.1, 0.5, gain))).split(",")
    names += counters_of(decide(policy, allowance, (), Scores(0.9, 0.5, 0.001))).split(",")
    assert names.count("flagged") == names.count("escalated") + names.count("shed") == 4
    assert names.count("answered") + names.count("escalated") == 5
    assert (names.count("shed:budget"), names.count("shed:no_gain")) == (1, 1)


def test_the_mean_of_the_best_is_over_a_seeded_sample_and_the_same_every_time():
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(768, 768)))[0].astype(np.float32)
    rule = ConfidenceRule(below=0.7, method="mean_top_k", k=2, sample_count=300)
    seen = vectors[:5].copy()
    first, again = mean_top_k(vectors, rule)(seen), mean_top_k(vectors, rule)(seen)
    np.testing.assert_array_equal(first, again)
    whole = ConfidenceRule(below=0.7, method="mean_top_k", k=2, sample_count=10_000)
    np.testing.assert_allclose(mean_top_k(vectors, whole)(seen), 0.5, atol=1e-5)  # (1 + 0) / 2
    with pytest.raises(ConfigError, match=r"confidence\.k is 769"):
        mean_top_k(vectors, ConfidenceRule(below=0.7, method="mean_top_k", k=769, sample_count=800))


def test_a_raw_margin_is_zero_where_the_best_reference_stands_for_several():
    raw = parse_policy('format = 1\nname = "x"\n[margin]\nbelow = 0.02\nmethod = "raw"\n', "x")
    predictions = np.eye(768, dtype=np.float32)[[0, 1]]
    assert GateScores(raw, Bank())(NO_CONTEXTS, predictions).margin.tolist() == [0.0, 1.0]
    assert GateScores(CARD, Bank())(NO_CONTEXTS, predictions).margin.tolist() == [1.0, 1.0]


def logged(path: Path, *scored: tuple[Scores, str]) -> Path:
    log = DecisionLog(path, CARD, 1.0, "amn")
    for n, (scores, lane) in enumerate(scored):
        context = np.eye(768, dtype=np.float32)[n : n + 5]
        request = Request(
            id=f"r{n}", reply_to="c", context=context, lane=lane, sequence="doc", position=n + 4
        )
        hard = ("high_stakes_lane",) if lane == "sci-fact" else ()
        decision = decide(CARD, Allowance.unlimited(), hard, scores)
        log.note(request, scores, decision, context[-1], 1_800_000_000_000 + 3_600_000 * n)
    log.close()
    return path


def test_a_decision_that_finds_no_room_is_lost_and_its_request_is_not(capsys):
    logged(Path("/dev/full"), (Scores(0.6, 0.5), "general"))
    assert "decision_not_logged" in "".join(capsys.readouterr())


def test_a_decision_log_is_read_back_with_the_truth_that_came_later(tmp_path):
    path = logged(
        tmp_path / "log",
        (Scores(0.6, 0.5), "general"),
        (Scores(), "sci-fact"),
        (Scores(0.9, 0.01), "general"),
    )
    first, second, third = read_log(path)
    assert (first.confidence, first.margin) == ({"top1": 0.6}, {"distinct": 0.5})
    assert (second.confidence, second.escalate) == ({}, True)
    assert (first.amn_cosine, second.amn_cosine, third.amn_cosine) == (0.0, 0.0, None)


def test_a_replay_of_the_same_policy_decides_the_same_and_counts_by_rule_lane_and_hour(tmp_path):
    path = logged(
        tmp_path / "log", (Scores(0.6, 0.5), "general"), (Scores(), "sci-fact"), (Scores(0.9, 0.5), "general")
    )
    found = backtest(read_log(path), CARD)
    assert found["rules"] == {
        "low_confidence": pytest.approx(1 / 3, abs=1e-4),
        "high_stakes_lane": pytest.approx(1 / 3, abs=1e-4),
    }
    assert found["lanes"]["sci-fact"]["escalated_rate"] == 1
    assert len(found["hours"]) == 3
    assert found["cosine"]["n"] == 0  # the fallback's answers are not in this log
    loose = parse_policy('format = 1\nname = "x"\n[confidence]\nbelow = 0.5\n', "x")
    assert backtest(read_log(path), loose)["flagged_rate"] == 0


def test_a_replay_leaves_out_what_it_cannot_score_and_says_so(tmp_path):
    path = logged(tmp_path / "log", (Scores(0.6, 0.5), "general"), (Scores(), "sci-fact"))
    found = backtest(read_log(path), load_policy("upstream"))
    assert (found["unscored"], found["requests"], found["escalated_rate"]) == (1, 1, 1.0)


def test_an_enforced_budget_is_kept_in_a_replay(tmp_path):
    line = {
        "lane": "general",
        "tokens": 0,
        "domain": "",
        "confidence": {"top1": 0.1},
        "margin": {"distinct": 0.0},
    }
    rows = [line | {"gain": float(g)} for g in np.random.default_rng(0).uniform(0, 1, 5000)]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, rows)))
    found = backtest(read_log(tmp_path / "log"), load_policy("calibrated"))
    assert 0.18 < found["escalated_rate"] <= 0.2
    assert found["flagged_rate"] == pytest.approx(found["escalated_rate"] + found["shed_rate"], abs=1e-4)


ODD_LINES = ["not json", "[1]", '{"kind": "truth"}', '{"lane": "general"}']
ODD_LINES += ['{"lane": "general", "tokens": "many", "domain": ""}']


@pytest.mark.parametrize("text", ODD_LINES)
def test_what_is_no_decision_log_is_refused(tmp_path, text):
    (tmp_path / "log").write_text(text)
    with pytest.raises(FileRefused, match="line 1 is not of a decision log"):
        read_log(tmp_path / "log")


def test_a_day_says_what_its_log_lacks(tmp_path):
    line = {"lane": "general", "tokens": 0, "domain": ""}
    scored = line | {"confidence": {"top1": 0.1}, "margin": {"distinct": 0.0}}
    for lines, said in (([line], "decision 1 of the log lacks a score"), ([scored], "0 of domain unseen")):
        (tmp_path / "log").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(FileRefused, match=said):
            simulate(None, CARD, read_log(tmp_path / "log"), DaySettings())


def test_explain_says_what_the_worker_says(tmp_path):
    """The shipped models: every rule with its value, and the ids that stand on answers."""
    with np.load("artifacts/sample/sequences.npz") as stored:
        rows = stored["vectors"][:5].astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    path = tmp_path / "request.msgpack"
    path.write_bytes(wire.encode_request(Request(id="r", reply_to="c", context=rows, lane="sci-fact")))
    ended = CliRunner().invoke(app, ["explain", str(path), "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.output)
    assert found["reasons"] == ["high_stakes_lane"]
    assert [rule["rule"] for rule in found["rules"]][:5] == [
        "high_stakes_lane",
        "long_context",
        "asked_for",
        "low_confidence",
        "thin_margin",
    ]
    assert found["policy"].startswith("calibrated@")
    assert found["calibration"].startswith("gain@")
    assert found["bank"].startswith("bank@")
    table = CliRunner().invoke(app, ["explain", str(path), "--policy", "card"])
    assert "high_stakes_lane" in table.output


def test_policies_are_listed_shown_and_checked(tmp_path):
    runner = CliRunner()
    assert "calibrated (default)" in runner.invoke(app, ["policy", "list"]).output
    shown = runner.invoke(app, ["policy", "show", "card"]).output
    (tmp_path / "own.toml").write_text(shown.replace("0.70", "0.60"))
    checked = runner.invoke(app, ["policy", "check", str(tmp_path / "own.toml")])
    assert "good, card@" in checked.output
    assert "gain@" in runner.invoke(app, ["policy", "check"]).output
