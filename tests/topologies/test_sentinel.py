"""Sentinel: three of them, a master and a replica, and the master is killed under load."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from servers import KINDS
from service import Service
from topology import Watched, plain, wait_in_step, wait_until
from traffic import AsyncTraffic, Traffic, patient

from producer import AsyncProducer, Producer
from producer.errors import ServerUnavailable
from producer.keys import Keys


@pytest.fixture(scope="module", params=KINDS)
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    servers = Watched(request.param)
    yield servers
    servers.close()


def test_producers_and_workers_find_the_master(
    watched: Watched, context: Any, run: Callable[[Any], Any]
) -> None:
    settings = patient(watched.url)

    async def ask() -> Any:
        async with AsyncProducer(settings=settings) as producer:
            return (await producer.predict(context)).vector

    with Service(settings), Producer(settings=settings) as producer:
        assert np.array_equal(producer.predict(context).vector, context[-1])
        assert np.array_equal(run(ask()), context[-1])
    with plain(watched.master.port) as master:
        assert master.hget(Keys().stats, "answered") == b"2"


def test_a_name_that_no_sentinel_knows_is_unavailable(watched: Watched) -> None:
    settings = patient(watched.url.replace("mymaster", "other"))
    with pytest.raises(ServerUnavailable, match="no node serves as master of 'other' now"):
        Producer(settings=settings).start()


def test_doctor_finds_the_master(watched: Watched, amn: Any) -> None:
    ended = amn("doctor", "--json", REDIS_URL=watched.url)
    assert '"server":' in ended.stdout, ended.stderr


def test_with_min_replicas_nothing_is_accepted_that_only_the_master_has(
    watched: Watched, context: Any
) -> None:
    """What asynchronous replication may lose is bounded by this setting: docs/deploy.md says so."""
    with plain(watched.master.port) as master, Producer(settings=patient(watched.url)) as producer:
        master.config_set("min-replicas-max-lag", 1)
        master.config_set("min-replicas-to-write", 1)
        watched.replica.signal(signal.SIGSTOP)
        try:
            wait_until(
                lambda: master.info("replication")["min_slaves_good_slaves"] == 0, "a replica that lags"
            )
            with pytest.raises(ServerUnavailable, match="NOREPLICAS"):
                producer.submit(context)
            assert master.xlen(Keys().requests) == 0
        finally:
            watched.replica.signal(signal.SIGCONT)
            master.config_set("min-replicas-to-write", 0)


def test_what_was_accepted_and_replicated_survives_the_master(watched: Watched, contexts: Any) -> None:
    settings = patient(watched.url)
    wait_in_step(watched.replica)
    with (
        Service(settings) as first,
        Service(settings, "second") as second,
        Producer(settings=settings) as producer,
        Traffic(producer, contexts(64)) as traffic,
        AsyncTraffic(settings, contexts(1)[0]) as asynchronous,
    ):
        wait_until(lambda: len(traffic.accepted) > 200, "traffic")
        watched.master.kill()
        before, answered = len(traffic.accepted), asynchronous.answered
        wait_until(watched.promoted, "a failover")
        wait_until(lambda: len(traffic.accepted) > before + 200, "traffic after the failover")
        wait_until(lambda: asynchronous.answered > answered + 10, "asyncio's too")
        traffic.__exit__()
        with plain(watched.replica.port) as now:
            kept = {name for name in traffic.accepted if now.exists(Keys().seen(name))}
        assert not traffic.failures
        for name in kept:
            answer = traffic.accepted[name].result(20_000)
            assert np.array_equal(answer.vector, traffic.context_of(name)[-1])
        lost = set(traffic.accepted) - kept
        assert len(lost) < 64, "more than the old master's last milliseconds"
        with Producer(settings=settings) as again:  # the same ids are new to the new master
            for name in lost:
                answer = again.predict(traffic.context_of(name), request_id=name)
                assert np.array_equal(answer.vector, traffic.context_of(name)[-1])
        assert set(first.echo.seen) | set(second.echo.seen) >= kept
        with plain(watched.replica.port) as now:
            asynchronous.__exit__()
            wait_until(lambda: now.xlen(Keys().requests) == 0, "an empty queue")
