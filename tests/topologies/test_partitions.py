"""Partitions: one queue as several, on one server and over the nodes of a cluster."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import numpy as np
import pytest
from fronted import gateway, say_alive
from redis.crc import key_slot
from servers import KINDS
from service import Service
from topology import SLOTS, Cluster, plain, wait_until
from traffic import patient

from producer import AsyncProducer, Options, Producer, ProducerSettings
from producer.errors import Cancelled, InvalidRequest, InvalidSettings, QueueFull
from producer.keys import Keys
from producer.partitions import Spread, partition_queues
from producer.sampling import RATE_MAX, sampled

N = 3


class Everything:
    """A worker for each partition of `main`, and a producer of all. A context manager."""

    def __init__(self, url: str, **fields: Any) -> None:
        self.settings = ProducerSettings(url=url, **fields)
        self.undo = ExitStack()
        self.workers: list[Service] = []

    def __enter__(self) -> Everything:
        for queue in partition_queues("main", N):
            settings = ProducerSettings(url=self.settings.url, queue=queue)
            self.workers.append(self.undo.enter_context(Service(settings)))
        self.producer = self.undo.enter_context(Producer(partitions=N, settings=self.settings))
        return self

    def __exit__(self, *_: object) -> None:
        self.undo.close()

    def partition_of(self, request_id: str) -> int:
        """Which worker had it."""
        (number,) = (i for i, worker in enumerate(self.workers) if request_id in worker.echo.seen)
        return number


def test_requests_take_turns_and_each_has_its_own_answer(server: Any, contexts: Any) -> None:
    rows = contexts(30)
    with Everything(server.url) as all_of_it:
        handles = all_of_it.producer.submit_many(list(rows))
        for handle, row in zip(handles, rows, strict=True):
            assert np.array_equal(handle.result().vector, row[-1])
        assert Counter(all_of_it.partition_of(handle.id) for handle in handles) == dict.fromkeys(range(N), 10)
        assert all_of_it.producer.in_flight == all_of_it.producer.stray_replies == 0


def test_a_sequence_stays_in_one_partition_and_so_does_an_id(server: Any, contexts: Any) -> None:
    rows = contexts(12)
    with Everything(server.url) as all_of_it:
        options = [Options(sequence=f"document-{i % 4}", position=i) for i in range(12)]
        handles = all_of_it.producer.submit_many(list(rows), options=options)
        for i, handle in enumerate(handles):
            handle.result()
            assert all_of_it.partition_of(handle.id) == crc32(f"document-{i % 4}".encode()) % N
        all_of_it.producer.predict(rows[0], request_id="mine")
        assert all_of_it.partition_of("mine") == crc32(b"mine") % N


def test_many_answers_come_from_all_partitions(server: Any, contexts: Any, run: Callable[[Any], Any]) -> None:
    rows = contexts(20)
    thousand = [rows[i % 20] for i in range(1_000)]

    async def ask() -> dict[int, Any]:
        async with AsyncProducer(server.url, partitions=N) as producer:
            assert (await producer.predict(rows[0], sequence="d", position=4)).vector.shape == (768,)
            handles = await producer.submit_many(list(rows[:7]))
            for handle, row in zip(handles, rows[:7], strict=True):
                assert np.array_equal((await handle.result()).vector, row[-1])
            return {i: answer async for i, answer in producer.predict_many(thousand)}

    with Everything(server.url) as all_of_it:
        for answers in (dict(all_of_it.producer.predict_many(thousand)), run(ask())):
            assert sorted(answers) == list(range(1_000))
            assert all(np.array_equal(answers[i].vector, rows[i % 20][-1]) for i in answers)
        assert min(len(worker.echo.seen) for worker in all_of_it.workers) > 500


def test_a_request_is_taken_back_wherever_it_waits(server: Any, contexts: Any) -> None:
    with Producer(server.url, partitions=N) as producer:
        handles = producer.submit_many(
            list(contexts(6)), options=[Options(sequence=f"d{i}") for i in range(6)]
        )
        assert producer.cancel(handles[0])
        assert producer.cancel(handles[1].id)
        assert handles[2].cancel()
        assert not producer.cancel("never-sent")
        for handle in handles[:3]:
            with pytest.raises(Cancelled):
                handle.result()
        assert producer.in_flight == 3


def test_a_truth_goes_where_its_prediction_is(server: Any, contexts: Any) -> None:
    name = next(f"d{i}" for i in range(10_000) if sampled(f"d{i}#4", RATE_MAX))
    with Everything(server.url) as all_of_it:
        handle = all_of_it.producer.submit(contexts(1)[0], sequence=name, position=4)
        handle.result()
        assert all_of_it.producer.report_truth(handle, contexts(1)[0][-1])
    queue = partition_queues("main", N)[crc32(name.encode()) % N]
    assert server.admin.xlen(Keys(queue).truths) == 1


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_full_partition_says_so_and_what_was_accepted_is_in_the_error(
    server: Any, contexts: Any, run: Any, kind: str
) -> None:
    settings = ProducerSettings(url=server.url, entries_max=2)

    async def ask() -> Any:
        async with AsyncProducer(partitions=N, settings=settings) as producer:
            with pytest.raises(QueueFull) as caught:
                await producer.submit_many(list(contexts(9)))
            return caught.value

    if kind == "asyncio":
        error = run(ask())
    else:
        with Producer(partitions=N, settings=settings) as producer:
            with pytest.raises(QueueFull) as caught:
                producer.submit_many(list(contexts(9)))
            error = caught.value
            assert producer.cancel(error.accepted[0])
    assert len(error.accepted) == 2 * N  # a full one keeps nothing from the others


def test_a_file_goes_through_all_partitions(
    real_server: Any, contexts: Any, amn: Any, tmp_path: Path
) -> None:
    rows = contexts(3_000)
    np.save(tmp_path / "in.npy", rows)
    with Everything(real_server.url) as all_of_it:
        words = (
            "predict",
            str(tmp_path / "in.npy"),
            "--out",
            str(tmp_path / "out.npy"),
            "--partitions",
            str(N),
        )
        ended = amn(*words, REDIS_URL=real_server.url)
        assert ended.returncode == 0, ended.stderr
        assert min(len(worker.echo.seen) for worker in all_of_it.workers) > 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), rows[:, -1])


def test_options_that_do_not_fit_are_refused(server: Any, contexts: Any) -> None:
    with Producer(server.url, partitions=N) as producer, pytest.raises(InvalidRequest):
        producer.submit_many(list(contexts(2)), options=[Options()])


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_a_number_of_partitions_that_cannot_be_is_refused(partitions: int) -> None:
    with pytest.raises(InvalidSettings):
        Producer(partitions=partitions)


def test_no_more_places_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.partitions.REMEMBERED_MAX", 10)
    spread = Spread(4)
    spread.note((f"r{i}" for i in range(100)), 3)
    assert spread.where("r99") == 3
    assert spread.where("r0") == spread.of("r0")


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    nodes = Cluster(request.param, key_slot(b"main.p0"))
    yield nodes
    nodes.close()


def test_partitions_spread_over_the_nodes_of_a_cluster(cluster: Cluster, contexts: Any) -> None:
    rows, names = contexts(60), partition_queues("main", 6)
    with ExitStack() as undo:
        for name in names:
            undo.enter_context(Service(patient(cluster.url, queue=name)))
        producer = undo.enter_context(Producer(partitions=6, settings=patient(cluster.url)))
        for handle, row in zip(producer.submit_many(list(rows)), rows, strict=True):
            assert np.array_equal(handle.result().vector, row[-1])
    owners = Counter(key_slot(name.encode()) * 3 // SLOTS for name in names)
    assert len(owners) == 3, "the six names fall on all three nodes"
    for number, node in enumerate(cluster.nodes):
        with plain(node.port) as client:
            assert sum(key.endswith(b":stats") for key in client.keys("*")) == owners[number]


def test_a_partition_without_its_node_fails_alone(cluster: Cluster, contexts: Any) -> None:
    """With no failover, the other partitions go on when `cluster-require-full-coverage` is off."""
    for node in cluster.nodes:
        cluster.ask(node.port, "CONFIG", "SET", "cluster-require-full-coverage", "no")
    lost = next(node for node in cluster.nodes if node is not cluster.owner)  # it has no replica
    number = cluster.nodes.index(lost)
    with ExitStack() as undo:
        names = [
            name for name in partition_queues("main", 6) if key_slot(name.encode()) * 3 // SLOTS != number
        ]
        for name in names:
            undo.enter_context(Service(patient(cluster.url, queue=name)))
        producers = [
            undo.enter_context(Producer(settings=patient(cluster.url, queue=name, retry_ms=20_000)))
            for name in names
        ]
        lost.kill()
        for producer, row in zip(producers, contexts(len(producers)), strict=True):
            assert np.array_equal(producer.predict(row, timeout_ms=20_000).vector, row[-1])


def told_of(client: httpx.Client) -> list[str]:
    """The partitions of which a gateway says that they are not ready."""
    ready = client.get("/v2/health/ready").json()
    return ready.get("queues_not_ready") or re.findall(r"queue (\S+) lives", ready.get("error", ""))


def test_a_gateway_asks_all_partitions_and_is_ready_while_any_has_a_worker(
    real_server: Any, contexts: Any
) -> None:
    queues = partition_queues("main", N)

    def is_ready(client: httpx.Client) -> bool:
        for queue in queues:
            say_alive(real_server.admin, f"echo-{queue}", queue)
        return client.get("/v2/health/ready").status_code == 200

    with (
        Everything(real_server.url) as all_of_it,
        gateway(real_server.url, "", "--partitions", f"{N}") as (client, _),
    ):
        wait_until(lambda: is_ready(client), "a gateway that is ready")
        for row in contexts(6):
            answer = client.post("/predict", json={"context": row.tolist()}).json()
            assert np.array_equal(np.float32(answer["vector"]), row[-1])
        assert [len(worker.echo.seen) for worker in all_of_it.workers] == [2] * N
        asked = {"context": contexts(1)[0].tolist(), "request_id": "mine"}
        answers = [client.post("/predict", json=asked).json() for _ in range(2)]
        assert answers[0]["vector"] == answers[1]["vector"]
        seen = [worker.echo.seen.count("mine") for worker in all_of_it.workers]
        assert seen == [int(part == crc32(b"mine") % N) for part in range(N)]
        told = client.post("/truth", json={"request_id": "mine", "vector": answers[0]["vector"]})
        assert told.json() in ({"sampled": True}, {"sampled": False})
        truth = {"sequence": "doc", "vector": answers[0]["vector"]}
        sent = [client.post("/truth", json={**truth, "position": n}).json()["sampled"] for n in range(100)]
        counts = [real_server.admin.xlen(Keys(queue).truths) for queue in queues]
        assert counts[crc32(b"doc") % N] >= sum(sent) > 0
        assert sum(counts) <= sum(sent) + 1
        for left in (2, 1, 0):
            real_server.admin.delete(Keys(queues[left]).worker(f"echo-{queues[left]}"))
            gone = list(queues[left:])
            wait_until(lambda: told_of(client) == gone, "all of them told")  # noqa: B023
            assert client.get("/v2/health/ready").status_code == (200 if left else 503)
            metrics = client.get("/metrics").text
            assert [f'amn_gateway_ready{{queue="{one}"}} 0.0' in metrics for one in queues] == [
                one in gone for one in queues
            ]
        assert all(queue in client.get("/v2/health/ready").json()["error"] for queue in queues)
