"""The pool's watch: it goes on whatever one look at the workers meets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from waiting import wait_until

from producer.keys import Keys
from workers.pool.failures import Deaths
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings


class Child:
    """A worker that is alive until its test says otherwise."""

    made: ClassVar[list[Child]] = []
    name, pid, code, age_s, leaving_s = "amn", 1, -11, 100.0, 0.0

    def __init__(self, *_: Any) -> None:
        self.alive = True
        self.is_ready = lambda: True
        self.silent_s = lambda: 0.0
        Child.made.append(self)

    def leave(self) -> None:
        self.alive = False

    def end(self, _: float) -> bool:
        return True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pool]:
    Child.made = []
    monkeypatch.setattr("workers.pool.pool.Child", Child)
    made = Pool({"amn": 1}, PoolSettings(url=f"unix://{tmp_path}/nothing", artifacts=tmp_path))
    made.start()
    yield made
    made.drain()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BlockingIOError(11, "fork")])
def test_a_worker_is_replaced_once_the_system_allows_it(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    tries: list[int] = []

    def refuse(*_: Any) -> Any:
        tries.append(1)
        raise error

    monkeypatch.setattr("workers.pool.pool.Child", refuse)
    pool.watch()
    Child.made[0].alive = False
    wait_until(lambda: len(tries) >= 2)
    assert pool.restarts == 0
    monkeypatch.setattr("workers.pool.pool.Child", Child)
    wait_until(lambda: pool.pids() == {"amn": [1]})
    assert pool.died == {"amn": 1}


def test_a_worker_that_died_over_its_work_is_replaced_at_once_and_one_that_never_starts_is_not(
    pool: Pool,
) -> None:
    for count in range(1, 6):
        Child.made[-1].alive = False
        Child.made[-1].age_s = 0.0
        pool.poll()
        assert pool.restarts == count
    for _ in range(3):
        Child.made[-1].alive = False
        Child.made[-1].is_ready = lambda: False
        Child.made[-1].age_s = 0.4
        pool.poll()
    assert pool.restarts == 6


def test_deaths_are_counted_when_the_server_is_back(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = Deaths(server.url, "main")
    deaths.tell({"amn": 2})
    increment = deaths._client.hincrby
    monkeypatch.setattr(deaths._client, "hincrby", lambda *_: (_ for _ in ()).throw(OSError("away")))
    deaths.tell({"amn": 3, "shadow": 1})
    monkeypatch.setattr(deaths._client, "hincrby", increment)
    deaths.tell({"amn": 3, "shadow": 1})  # not yet again
    assert server.admin.hgetall(Keys().stats) == {b"worker_died:amn": b"2"}
    deaths._again_at_s = 0.0
    deaths.tell({"amn": 3, "shadow": 1})
    deaths.tell({"amn": 3, "shadow": 1})
    assert server.admin.hgetall(Keys().stats) == {b"worker_died:amn": b"3", b"worker_died:shadow": b"1"}
    deaths.close()
