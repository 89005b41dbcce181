"""Redis Cluster: three masters; the slot moves and its node dies under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import redis
from redis.crc import key_slot
from servers import KINDS
from service import Service
from topology import Cluster, plain, wait_until
from traffic import AsyncTraffic, Traffic, patient

from producer import AsyncProducer, Options, Producer
from producer.errors import ServerError
from producer.keys import Keys
from producer.messages import PRIORITIES
from producer.session.requests import prepare
from producer.transport.connection import script_text, translated

QUEUE = "main"


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    nodes = Cluster(request.param, key_slot(QUEUE.encode()))
    yield nodes
    nodes.close()


def all_answered(traffic: Traffic) -> None:
    assert not traffic.failures
    for name, handle in traffic.accepted.items():
        assert np.array_equal(handle.result(20_000).vector, traffic.context_of(name)[-1])


def test_producers_and_workers_find_the_node_of_their_slot(
    cluster: Cluster, context: Any, run: Callable[[Any], Any]
) -> None:
    settings = patient(cluster.url)

    async def ask() -> Any:
        async with AsyncProducer(settings=settings) as producer:
            return (await producer.predict(context)).vector

    with Service(settings), Producer(settings=settings) as producer:
        assert np.array_equal(producer.predict(context).vector, context[-1])
        assert np.array_equal(run(ask()), context[-1])
    with plain(cluster.owner.port) as owner:
        assert owner.hget(Keys().stats, "answered") == b"2"


def test_doctor_finds_the_node_of_the_slot(cluster: Cluster, amn: Any) -> None:
    ended = amn("doctor", "--json", REDIS_URL=cluster.url)
    assert '"server":' in ended.stdout, ended.stderr


def test_an_address_of_one_node_says_that_it_is_a_cluster(cluster: Cluster) -> None:
    for node in cluster.nodes:
        producer = Producer(f"redis://127.0.0.1:{node.port}")
        if node is cluster.owner:
            producer.start()
        else:
            with pytest.raises(ServerError, match=r"redis\+cluster://") as caught:
                producer.start()
            assert not caught.value.retryable
        producer.close()


def test_a_slot_that_moves_under_load_loses_nothing(cluster: Cluster, contexts: Any) -> None:
    settings = patient(cluster.url)
    target = next(node for node in cluster.nodes if node is not cluster.owner)
    with (
        Service(settings) as service,
        Producer(settings=settings) as producer,
        Traffic(producer, contexts(64)) as traffic,
        AsyncTraffic(settings, contexts(1)[0]) as asynchronous,
    ):
        wait_until(lambda: len(traffic.accepted) > 200, "traffic")
        cluster.migrate(target)
        before, answered = len(traffic.accepted), asynchronous.answered
        wait_until(lambda: len(traffic.accepted) > before + 200, "traffic after the move")
        wait_until(lambda: asynchronous.answered > answered + 10, "asyncio's too")
        traffic.__exit__()
        all_answered(traffic)
        assert set(service.echo.seen) >= set(traffic.accepted)
    with plain(target.port) as owner:
        assert owner.exists(Keys().stats)
        wait_until(lambda: owner.xlen(Keys().requests) == 0, "an empty queue")


def test_a_repeat_meets_its_id_on_the_way_to_another_node_and_runs_once(
    cluster: Cluster, contexts: Any
) -> None:
    """The streams are here still, and what is known of the id is there already."""
    keys, options = Keys(), [Options(priority=priority) for priority in PRIORITIES]
    with Producer(settings=patient(cluster.url)) as producer:
        producer.submit_many(list(contexts(len(options))), options=options)
        source = next(node for node in cluster.nodes if node.port == cluster.owner_port(cluster.owner.port))
        target = next(node for node in cluster.nodes if node is not source)
        session = producer.channels[0]
        names, words = session.submit_call(
            [prepare(contexts(1)[0], Options(request_id="twice"), session.client_id, session.settings)]
        )
        with plain(source.port) as client:
            submit = partial(client.eval, script_text("producer", "submit"), len(names), *names, *words)
            assert submit() == [1]
            waiting = client.xlen(keys.requests)
            cluster.begin_move(source, target)
            cluster.ask(source.port, "MIGRATE", "127.0.0.1", target.port, keys.seen("twice"), 0, 5000)
            with pytest.raises(redis.ResponseError) as caught:
                submit()
            assert translated(caught.value, cluster.url).retryable
            assert client.xlen(keys.requests) == waiting
            cluster.migrate(target)
        with plain(target.port) as client:
            assert client.eval(script_text("producer", "submit"), len(names), *names, *words) == [1]
            assert client.xlen(keys.requests) == waiting
            client.delete(*keys.levels, *keys.counters)
    cluster.migrate(cluster.owner)


def test_a_node_that_dies_under_load_is_followed_by_its_replica(cluster: Cluster, contexts: Any) -> None:
    cluster.migrate(cluster.owner)  # back to the node that has a replica
    settings = patient(cluster.url)
    with (
        Service(settings),
        Producer(settings=settings) as producer,
        Traffic(producer, contexts(64)) as traffic,
        AsyncTraffic(settings, contexts(1)[0]) as asynchronous,
    ):
        wait_until(lambda: len(traffic.accepted) > 200, "traffic")
        cluster.owner.kill()
        before, answered = len(traffic.accepted), asynchronous.answered
        wait_until(lambda: len(traffic.accepted) > before + 200, "traffic after the failover")
        wait_until(lambda: asynchronous.answered > answered + 10, "asyncio's too")
        traffic.__exit__()
        with plain(cluster.replica.port) as now:
            kept = {name for name in traffic.accepted if now.exists(Keys().seen(name))}
        assert len(traffic.accepted) - len(kept) < 64, "more than the old node's last milliseconds"
        traffic.accepted = {name: traffic.accepted[name] for name in kept}
        all_answered(traffic)
