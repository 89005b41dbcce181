"""The judge on every server: what it stores, under which fence, and what a restart finds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from rig import show_worker
from structlog.testing import capture_logs

from ops.clock import BLOCK_MIN, server_now_ms
from ops.drift import memory
from ops.drift.loop import Judge, evaluate
from ops.drift.measures.stored import dumps
from ops.drift.memory import Memory
from ops.drift.service import history
from ops.drift.settings import JudgeSettings
from ops.drift.state import Evaluation, JudgeState, ModelState, Order
from ops.leader import leader_key, write
from producer.keys import Keys
from workers.shadow.scores import MILLION, Labels

KEYS = Keys("main")
SETTINGS = JudgeSettings(learn_requests_min=1000, learn_max_h=24)
MODEL = "amn@1"


def put(server: Any, minute: int, n: int = 30, ood: float = 0.6, inside: float = 0.5) -> None:
    """One minute's sums, as the shadow worker writes them."""
    fields = {}
    for name, mean in (("ood", ood), ("id", inside)):
        labels = Labels(MODEL, "general", name)
        total = round(n * mean * MILLION)
        squares = round(n * (mean**2 + 0.0225) * MILLION)
        stats = {"predictions": n, "n": n, "amn.sum": total, "amn.squares": squares, "h160": n}
        fields |= {labels.field(stat): amount for stat, amount in stats.items()}
    server.admin.hset(f"{KEYS.drift_minute_prefix}{minute}", mapping=fields)
    server.admin.zadd(KEYS.drift_minutes, {str(minute): minute})


def a_day(server: Any, hours: int = 26) -> int:
    """Fills the hours before now; returns now, ms."""
    now_ms = server_now_ms(server.admin)
    for minute in range(now_ms // 60_000 - 60 * hours, now_ms // 60_000 + 1):
        put(server, minute)
    return now_ms


def stored(server: Any, name: str) -> bytes | None:
    return server.admin.get(KEYS.drift_prefix + name)


def test_a_judge_learns_a_baseline_and_stores_what_it_needs_after_a_restart(server: Any) -> None:
    now_ms = a_day(server)
    judge = Judge(server.admin, KEYS, SETTINGS)
    found = judge.turn(now_ms)
    assert found is not None
    assert [(entry["what"], entry["model"]) for entry in found.audit] == [("frozen", MODEL)]
    again = Memory(server.admin, KEYS)
    assert dumps(again.state()) == dumps(found.state)
    assert again.evaluated_at_ms() == now_ms
    assert [f.rule for f in again.findings()] == [f.rule for f in found.findings]
    assert again.audit()[0]["what"] == "frozen"
    # The minutes expire after two days; the blocks carry on.
    for key in server.admin.keys("amn:{main}:drift:minute*"):
        server.admin.delete(key)
    later = evaluate(server.admin, KEYS, again, SETTINGS, now_ms)
    settled = found.traffic.series[MODEL][""][1, :, :-37]
    assert (later.traffic.series[MODEL][""][1, :, : settled.shape[-1]] == settled).all()


def test_every_key_of_the_judge_expires(server: Any) -> None:
    judge = Judge(server.admin, KEYS, SETTINGS)
    found = judge.turn(a_day(server))
    assert found is not None
    judge.keep_minute(found)
    Memory(server.admin, KEYS).order(Order(model=MODEL, hours=1, who="me", why="new encoder", at_ms=1))
    keys = [k for k in server.admin.keys("amn:{main}:drift:*") if b"minute" not in k]
    assert {k.decode().split(":")[3] for k in keys} == {
        "judge", "block", "counts", "audit", "leader", "fence", "orders", "history"
    }  # fmt: skip
    assert all(server.admin.ttl(k) > 0 for k in keys)


def test_two_judges_take_turns_and_only_the_leader_writes(server: Any) -> None:
    now_ms = a_day(server)
    first, second = Judge(server.admin, KEYS, SETTINGS), Judge(server.admin, KEYS, SETTINGS)
    assert first.turn(now_ms) is not None
    assert second.turn(now_ms) is None
    assert first.turn(now_ms + 59_000) is None  # its minute is not over
    assert first.turn(now_ms + 61_000) is not None
    server.admin.delete(leader_key(KEYS))  # the first one is stopped for longer than its lease
    found = second.turn(now_ms + 122_000)
    assert found is not None
    first.keep_minute(found)  # it does not know yet that it was replaced
    assert history.read(server.admin, KEYS) == []
    second.keep_minute(found)
    assert [row["at_ms"] for row in history.read(server.admin, KEYS)] == [found.now_ms]
    assert first.turn(now_ms + 183_000) is None


def test_a_judge_that_slept_through_its_lease_writes_nothing(server: Any) -> None:
    memory = Memory(server.admin, KEYS)
    server.admin.set(leader_key(KEYS), "7")
    commit = Evaluation(state=JudgeState(models={"m": ModelState(first_block=1)}), findings=[], now_ms=5)
    assert memory.commit(7, commit)
    stale = Evaluation(state=JudgeState(), now_ms=600_000, audit=[{"what": "x"}], counters={"a": 1})
    assert not memory.commit(6, stale)
    assert memory.evaluated_at_ms() == 5
    assert "m" in memory.state().models
    assert memory.audit() == []
    assert stored(server, "counts:1") is None


def test_the_alerts_are_told_before_the_state_is_written(server: Any) -> None:
    now_ms = a_day(server)

    def dies(findings: object, at_ms: int, fence: int) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Judge(server.admin, KEYS, SETTINGS, dies).turn(now_ms)
    assert Memory(server.admin, KEYS).evaluated_at_ms() == 0
    server.admin.delete(leader_key(KEYS))
    told: list[tuple[int, int, int]] = []
    judge = Judge(server.admin, KEYS, SETTINGS, lambda f, at, fence: told.append((len(list(f)), at, fence)))
    assert judge.turn(now_ms) is not None
    assert told == [(len(Memory(server.admin, KEYS).findings()), now_ms, told[0][2])]
    assert told[0][2] == int(server.admin.get(leader_key(KEYS)))


def test_an_operator_rebaselines_and_the_audit_says_who_when_and_why(server: Any) -> None:
    now_ms = a_day(server)
    judge = Judge(server.admin, KEYS, SETTINGS)
    judge.turn(now_ms)
    memory = Memory(server.admin, KEYS)
    memory.order(Order(model=MODEL, hours=24, who="ada", why="new encoder since noon", at_ms=now_ms))
    memory.order(Order(model="nobody", hours=0, who="ada", why="a typing error", at_ms=now_ms))
    found = judge.turn(now_ms + 61_000)
    assert found is not None
    assert memory.orders() == []
    entries = {entry["what"]: entry for entry in memory.audit()}
    assert entries["rebaseline"] | {"delta_before": 0} == {
        "what": "rebaseline", "model": MODEL, "hours": 24, "who": "ada", "at_ms": now_ms,
        "why": "new encoder since noon", "delta_before": 0,
    }  # fmt: skip
    assert entries["rebaseline"]["delta_before"] == pytest.approx(0.1, abs=1e-3)
    assert entries["rebaseline_refused"]["model"] == "nobody"


def test_an_order_given_while_the_judge_looked_is_not_lost(server: Any) -> None:
    now_ms = a_day(server)
    memory = Memory(server.admin, KEYS)
    server.admin.set(leader_key(KEYS), "7")
    found = evaluate(server.admin, KEYS, memory, SETTINGS, now_ms)
    memory.order(Order(model=MODEL, hours=0, who="ada", why="late", at_ms=now_ms))
    assert memory.commit(7, found)
    assert [order.why for order in memory.orders()] == ["late"]


def test_a_judge_whose_write_was_done_but_not_answered_goes_on_from_it(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = a_day(server)
    judge = Judge(server.admin, KEYS, SETTINGS)
    assert judge.turn(now_ms)
    Memory(server.admin, KEYS).order(Order(model=MODEL, hours=0, who="ada", why="new encoder", at_ms=now_ms))

    def done_without_an_answer(*arguments: Any) -> bool:
        write(*arguments)
        raise redis.ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "write", done_without_an_answer)
        with pytest.raises(redis.ConnectionError):
            judge.turn(now_ms + 61_000)
    assert judge.turn(now_ms + 122_000)
    assert Memory(server.admin, KEYS).state().models[MODEL].declared_ms == now_ms + 61_000


def test_late_truths_change_the_day_until_their_block_is_settled(server: Any) -> None:
    now_ms = a_day(server)
    memory = Memory(server.admin, KEYS)
    first = evaluate(server.admin, KEYS, memory, SETTINGS, now_ms).traffic.series[MODEL][""][1].sum()
    put(server, now_ms // 60_000 - 60, n=40)
    put(server, now_ms // 60_000 - 600, n=40)
    later = evaluate(server.admin, KEYS, memory, SETTINGS, now_ms).traffic.series[MODEL][""][1].sum()
    assert later - first == 20


def test_what_no_judge_can_have_written_is_not_read_whole(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(server.admin, KEYS, SETTINGS)
    now_ms = a_day(server)
    assert judge.turn(now_ms) is not None
    monkeypatch.setattr(memory, "_TEXT_BYTES_MAX", 1_000)
    end = now_ms // 60_000 // BLOCK_MIN
    server.admin.set(f"{KEYS.drift_prefix}block:{end - 200}", "x" * 1_001)
    server.admin.delete(f"{KEYS.drift_prefix}block:{end - 201}")
    server.admin.hset(f"{KEYS.drift_prefix}block:{end - 201}", "x", "y")
    assert len(Memory(server.admin, KEYS).blocks(end)) == memory.BLOCKS_KEPT
    monkeypatch.setattr(memory, "_FIELD_BYTES_MAX", 100)
    with pytest.raises(ValueError, match=r"field state .* has .* bytes"):
        Memory(server.admin, KEYS).state()


def test_more_orders_and_audit_and_a_longer_canary_than_we_write_are_named_and_not_read(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Memory(server.admin, KEYS)
    order = Order(model=MODEL, hours=1, who="me", why="again and again", at_ms=1)
    server.admin.rpush(KEYS.drift_prefix + "orders", *[dumps(order)] * 130)
    server.admin.rpush(KEYS.drift_prefix + "audit", *['{"what":"x"}'] * 250)
    server.admin.hset(KEYS.drift_prefix + "canary", mapping={MODEL: '{"n":1}', "long": "x" * 200})
    monkeypatch.setattr(memory, "_CANARY_BYTES_MAX", 100)
    with capture_logs() as said:
        assert (len(kept.orders()), len(kept.audit())) == (100, 200)
        assert kept.canary([MODEL, "long", "none"]) == {MODEL: {"n": 1}}
    assert [(one["event"], one.get("entries")) for one in said] == [
        ("stored_list_too_long", 130), ("stored_list_too_long", 250), ("canary_not_read", None)
    ]  # fmt: skip
    server.admin.set(leader_key(KEYS), "7")
    assert kept.commit(7, Evaluation(state=JudgeState(), now_ms=5))
    assert len(kept.orders()) == 30  # the hundred that were read are done


def test_an_empty_server_is_judged_without_complaint(server: Any) -> None:
    found = evaluate(server.admin, KEYS, Memory(server.admin, KEYS), SETTINGS)
    assert {f.state for f in found.findings} <= {"insufficient", "ok"}
    json.dumps([f.summary for f in found.findings])


class Living:
    """Traffic and a judge, five minutes at a time, on a clock that the test steps."""

    def __init__(self, server: Any, hours: int = 26) -> None:
        self.server, self.now_ms = server, a_day(server, hours)
        show_worker(server.admin, "amn-1", {"kind": "amn"})  # who answers all of it
        self.judge = Judge(server.admin, KEYS, SETTINGS)
        self.fired: set[str] = set()

    def live(self, blocks: int, ood: float = 0.6, failed: int = 0) -> Living:
        """So many blocks; notes the rules that fire meanwhile."""
        for _ in range(blocks):
            for _ in range(BLOCK_MIN):
                self.now_ms += 60_000
                add(self.server, self.now_ms // 60_000, ood)
            counts = {"answered": 1000 - failed, "failed": failed}
            for name, amount in counts.items():
                self.server.admin.hincrby(KEYS.stats, name, amount)
            found = self.judge.turn(self.now_ms)
            assert found is not None
            self.fired |= {one.rule for one in found.findings if one.state == "firing"}
        return self

    def step(self, minutes: int) -> Living:
        self.now_ms += minutes * 60_000
        return self


def add(server: Any, minute: int, ood: float) -> None:
    """As `put`, of a minute that may come a second time."""
    key = f"{KEYS.drift_minute_prefix}{minute}"
    before = server.admin.hgetall(key)
    put(server, minute, ood=ood)
    for field, amount in before.items():
        server.admin.hincrby(key, field, amount)


#: Nobody works in that world, which is a page of its own.
UNRELATED = {"monitor_health", "no_worker"}


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize(("minutes", "hours"), [(-60, 26), (-1500, 52), (60, 26), (1500, 26)])
def test_a_step_of_the_clock_invents_no_page_and_hides_no_drop(server: Any, minutes: int, hours: int) -> None:
    world = Living(server, hours).live(2).step(minutes).live(14)
    assert not world.fired - UNRELATED
    if minutes == -60:
        world.live(12)  # the fast detector waits until the clock has passed where it was
        assert not world.fired - UNRELATED
    assert {"fast_drop", "ood_delta"} & world.live(60, ood=0.35).fired


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_errors_page_soon_after_a_step_back_and_those_that_were_over_do_not_again(server: Any) -> None:
    world = Living(server).live(14).live(6, failed=500)
    assert "slo_error" in world.fired
    world.live(8)
    world.fired.clear()
    world.step(-60).live(14)
    assert "slo_error" not in world.fired
    assert "slo_error" in world.live(4, failed=500).fired


def test_the_judge_looks_each_minute_whatever_the_clock_does(server: Any) -> None:
    now_ms = a_day(server)
    judge = Judge(server.admin, KEYS, SETTINGS)
    assert judge.turn(now_ms)
    for minute in range(1, 5):
        assert judge.turn(now_ms - 3_600_000 + minute * 60_000)
        assert judge.turn(now_ms - 3_600_000 + minute * 60_000 + 10_000) is None
    again = Judge(server.admin, KEYS, SETTINGS)
    server.admin.delete(leader_key(KEYS))
    assert again.turn(now_ms - 7_200_000)  # and whoever takes over
