"""The canary: through the live path, in no sum, on no budget, and exact to the last item."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from echo import EchoWorker
from numpy.typing import NDArray

from ops.app import app
from ops.clock import server_now_ms
from producer.keys import Keys
from producer.messages import Failure, Reply, Request
from producer.sampling import RATE_MAX, sample_key, sampled
from producer.settings import ProducerSettings
from workers.errors import NotReady
from workers.settings import FALLBACK_MS_MIN, WorkerSettings
from workers.shadow.canary import Canary, CanaryResult, FrozenSet, sample_file
from workers.shadow.settings import ShadowSettings
from workers.shadow.turns import ShadowTurns

KEYS = Keys()


@pytest.fixture
def items(contexts: Callable[..., NDArray[np.float32]]) -> FrozenSet:
    made = contexts(40, seed=3)
    return FrozenSet(contexts=made, truths=made[:, 3], ood=np.arange(40) % 2 == 0)


def answering(
    model: str = "amn@1", shift: float = 0.0, odd: str = ""
) -> Callable[[Request], list[Reply | Failure]]:
    """The last vector, moved by `shift` towards the one before it."""

    def answer(request: Request) -> list[Reply | Failure]:
        vector = request.context[-1] + np.float32(shift) * request.context[-2]
        vector = np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)
        served = Reply(id=request.id, vector=vector, confidence=0.9, margin=0.1, model=model)
        if odd == "fallback" and request.context[0, 0] > 0:
            return [replace(served, served_by="gru", model="gru@1")]
        if odd == "failing" and request.context[0, 0] > 0:
            return [Failure(id=request.id, code="inference_failed", message="no")]
        return [served]

    return answer


def run(server: Any, items: FrozenSet, **how: Any) -> CanaryResult | None:
    with EchoWorker(server.url, answering(**how)):
        return Canary(server.admin, ProducerSettings(url=server.url), items).run()


def test_the_first_run_is_what_later_ones_are_compared_with(server: Any, items: FrozenSet) -> None:
    first = run(server, items)
    assert first is not None
    assert (first.n, first.asked, first.golden) == (40, 40, False)
    again = run(server, items)
    assert again is not None
    assert (again.golden, again.max_change, again.max_distance) == (True, 0.0, 0.0)
    moved = run(server, items, shift=0.05)
    assert moved is not None
    assert moved.max_change == pytest.approx(0.05, abs=0.01)
    assert moved.mean_id > again.mean_id
    assert again.minute * 60_000 == pytest.approx(server_now_ms(server.admin), abs=120_000)
    stored = json.loads(server.admin.hget(KEYS.drift_prefix + "canary", "amn@1"))
    assert stored["max_change"] == moved.max_change
    assert server.admin.llen(KEYS.drift_prefix + "canary:runs") == 3
    names = server.admin.keys(KEYS.drift_prefix + "canary*")
    assert all(server.admin.ttl(name) > 0 for name in names)


def test_a_new_model_begins_anew(server: Any, items: FrozenSet) -> None:
    run(server, items)
    other = run(server, items, model="amn@2", shift=0.5)
    assert other is not None
    assert (other.model, other.golden) == ("amn@2", False)
    assert server.admin.hlen(KEYS.drift_prefix + "canary") == 2


def test_other_items_are_not_compared(server: Any, items: FrozenSet) -> None:
    run(server, items)
    changed = replace(items, truths=items.contexts[:, 2])
    found = run(server, changed)
    assert found is not None
    assert not found.golden


@pytest.mark.parametrize("odd", ["fallback", "failing"])
def test_what_amn_did_not_answer_is_told_apart_and_never_becomes_the_measure(
    server: Any, items: FrozenSet, odd: str
) -> None:
    found = run(server, items, odd=odd)
    assert found is not None
    missing = int((items.contexts[:, 0, 0] > 0).sum())
    assert (found.n, found.other + found.failed) == (40 - missing, missing)
    assert (found.other > 0) == (odd == "fallback")
    assert server.admin.keys(KEYS.drift_prefix + "canary:golden:*") == []


def test_its_requests_are_in_no_sample_and_leave_no_time_for_a_fallback(
    server: Any, items: FrozenSet
) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> list[Reply | Failure]:
        seen.append(request)
        return answering()(request)

    with EchoWorker(server.url, answer):
        Canary(server.admin, ProducerSettings(url=server.url), items).run()
    assert len(seen) == 40
    for request in seen:
        assert request.sequence == ""
        assert not sampled(sample_key(request.id, "", -1), RATE_MAX)
        assert request.expires_at_ms - request.submitted_at_ms < FALLBACK_MS_MIN
        assert request.reply_to.startswith("canary.")


def test_nobody_there_is_no_result(server: Any, items: FrozenSet) -> None:
    canary = Canary(server.admin, ProducerSettings(url=server.url), replace_count(items, 3))
    assert canary.run() is None
    assert server.admin.keys(KEYS.drift_prefix + "canary*") == []


def replace_count(items: FrozenSet, count: int) -> FrozenSet:
    return FrozenSet(contexts=items.contexts[:count], truths=items.truths[:count], ood=items.ood[:count])


def test_one_worker_an_hour_replays(server: Any, items: FrozenSet) -> None:
    canary = Canary(server.admin, ProducerSettings(url=server.url), items)
    assert [canary.claim(3_600_000) for _ in range(3)] == [True, False, False]
    canary.postpone(1)
    assert 0 <= server.admin.pttl(KEYS.drift_prefix + "canary:turn") + 2 <= 3
    server.admin.delete(KEYS.drift_prefix + "canary:turn")
    assert canary.claim(3_600_000)


def test_a_shadow_workers_turn_replays_the_shipped_set_and_steers(server: Any) -> None:
    settings = WorkerSettings(kind="shadow", producer=ProducerSettings(url=server.url))
    turns = ShadowTurns(settings, ShadowSettings())
    with EchoWorker(server.url, answering()):
        turns.turn(time.monotonic())  # too early
        assert not server.admin.exists(KEYS.drift_prefix + "canary:turn")
        turns.turn(time.monotonic() + 600)
        turns.turn(time.monotonic() + 601)  # not due again
    runs = server.admin.lrange(KEYS.drift_prefix + "canary:runs", 0, -1)
    assert len(runs) == 1
    assert json.loads(runs[0])["n"] == 128
    assert server.admin.exists(KEYS.drift_prefix + "rates")
    turns.client.close()


def test_the_shipped_set_has_as_many_of_both_slices() -> None:
    shipped = FrozenSet.load(sample_file())
    assert shipped.contexts.shape == (128, 5, 768)
    assert int(shipped.ood.sum()) == 64
    assert shipped.id == FrozenSet.load(sample_file()).id


def test_a_sample_that_cannot_be_read_says_so(tmp_path: Any) -> None:
    with pytest.raises(NotReady, match="canary's sample"):
        FrozenSet.load(tmp_path / "missing.npz")


def test_the_command_replays_and_compares(server: Any) -> None:
    with EchoWorker(server.url, answering()):
        first = CliRunner().invoke(app, ["drift", "canary", "--url", server.url])
        again = CliRunner().invoke(app, ["drift", "canary", "--json", "--url", server.url])
    assert first.exit_code == 0, first.output
    assert "128 of 128 items, this is its first run" in first.output
    assert json.loads(again.stdout)["max_change"] == 0.0


def test_the_command_fails_when_nobody_answers(server: Any) -> None:
    found = CliRunner().invoke(app, ["drift", "canary", "--url", server.url])
    assert found.exit_code == 1
    assert "no AMN worker answered" in found.output
