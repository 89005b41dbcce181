"""Live answers of an approximate bank, searched again beside a worker: what is counted, and when not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amn.bank.bank import load_bank
from amn.bank.build import BankSettings, build_bank
from amn.bank.settings import IndexSettings
from ops.app import run
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings
from workers.handlers.recheck import RecheckThread
from workers.settings import WorkerSettings

pytest.importorskip("faiss")
KEYS = Keys()


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 texts in 16 cells, searched as narrowly as an index can be."""
    narrow = IndexSettings(cells=16, probes=1, probes_wide=1, rerank=2, rerank_wide=2)
    settings = BankSettings(
        encoder_id="all-mpnet-base-v2/mean/l2", source="a test", indexed=True, index=narrow
    )
    place = tmp_path_factory.mktemp("banks") / "bank"
    build_bank(unit(np.random.default_rng(0).normal(size=(1500, 768))), place, settings)
    return place


@pytest.fixture
def bank(folder: Path) -> Any:
    return load_bank(folder)


@pytest.fixture
def queries(bank: Any) -> np.ndarray:
    """Near one text of the bank: kept, if the search finds it, but for a twin that a narrow one misses."""
    noise = unit(np.random.default_rng(1).normal(size=(200, 768)))
    return unit(bank.vectors[:200] + 0.6 * noise)


def thread(url: str, bank: Any, one_in: int = 1, **options: Any) -> RecheckThread:
    settings = WorkerSettings(kind="amn", producer=ProducerSettings(url=url), recheck_one_in=one_in)
    return RecheckThread(settings, bank, **options)


def counted(server: Any) -> dict[str, int]:
    stats = server.admin.hgetall(KEYS.stats)
    return {name.decode(): int(value) for name, value in stats.items()}


def test_answers_are_searched_again_and_the_decisions_counted(server: Any, bank: Any, queries: Any) -> None:
    side = thread(server.url, bank)
    side.start()
    bank.top2(queries[:30])
    bank.top2(queries[30:50])
    wrong = bank.top2(queries[:10])._replace(best=np.ones(10, np.float32), second=np.zeros(10, np.float32))
    side.turn()
    found = counted(server)
    assert found["rechecked"] == 60
    # What a narrow search misses is not found; all that is kept here is kept rightly.
    assert 0 < found["recheck:agreed"] <= 60
    assert "recheck:unsafe" not in found
    # Answers that keep everything: those that an exact search would escalate are unsafe.
    far = unit(np.random.default_rng(2).normal(size=(10, 768)))
    side.offer(far, wrong)
    side.turn()
    assert counted(server)["rechecked"] == 70
    assert counted(server)["recheck:unsafe"] == 10
    side.stop()
    assert bank.observer is None


def test_what_has_no_room_is_left_out_and_counted(server: Any, bank: Any, queries: Any) -> None:
    side = thread(server.url, bank, rows_max=16)
    side.offer(queries, bank.top2(queries))
    side.turn()
    assert counted(server)["rechecked"] == 16
    assert counted(server)["recheck:dropped"] == 184
    side.turn()
    assert counted(server)["recheck:dropped"] == 184


def test_one_in_so_many_is_drawn(server: Any, bank: Any, queries: Any) -> None:
    side = thread(server.url, bank, one_in=10, rows_max=1000)
    side.offer(queries, bank.top2(queries))
    side.turn()
    assert 5 < counted(server)["rechecked"] < 45


def test_counts_wait_for_a_server_that_is_away(make_server: Any, bank: Any, queries: Any) -> None:
    server = make_server()
    side = thread(server.url, bank)
    side.offer(queries[:20], bank.top2(queries[:20]))
    server.kill()
    with pytest.raises(ServerError):
        side.turn()
    server.start()
    side.offer(queries[:5], bank.top2(queries[:5]))
    side.turn()
    assert int(server.client().hget(KEYS.stats, "rechecked")) == 25


def test_the_thread_takes_its_turns_by_itself(make_server: Any, bank: Any, queries: Any) -> None:
    server = make_server()
    side = thread(server.url, bank, turn_s=0.01)
    side.start()
    bank.top2(queries[:20])
    client, give_up_at_s = server.client(), time.monotonic() + 30
    while client.hget(KEYS.stats, "rechecked") != b"20":
        assert time.monotonic() < give_up_at_s
        time.sleep(0.01)
    side.stop()


def test_the_command_tells_what_was_found(server: Any, capsys: Any) -> None:
    assert _status(capsys, server.url).startswith("no answer was searched again")
    server.admin.hset(KEYS.stats, mapping={"rechecked": 400, "recheck:agreed": 399, "recheck:unsafe": 1})
    said = _status(capsys, server.url)
    assert "400 answers" in said
    assert "99.75% decided the same" in said
    assert "0.25%" in said


def _status(capsys: Any, url: str) -> str:
    assert run(["bank", "status", "--url", url]) == 0
    return str(capsys.readouterr().out)


def test_a_setting_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="recheck_one_in is -1"):
        replace(WorkerSettings(kind="amn"), recheck_one_in=-1)
