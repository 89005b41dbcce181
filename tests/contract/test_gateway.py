"""The gateway's process as its clients meet it, on real servers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from echo import EchoWorker, echo
from fronted import DOCUMENT, INFER, gateway, outputs, say_alive, v2
from numpy.typing import NDArray
from served import served
from servers import Server
from test_batches import service
from waiting import wait_until

from ops.web import protocol
from producer.keys import Keys
from producer.messages import Failure, Reply, Request
from producer.sampling import RATE_MAX, sampled
from workers.pool.child import our_environment, our_python

KEYS = Keys()
TOKEN = "a-token-of-twenty-four-chars"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Context = NDArray[np.float32]


@pytest.fixture
def door(real_server: Any) -> Iterator[tuple[httpx.Client, EchoWorker, subprocess.Popen[str]]]:
    """A gateway before a worker that answers each context with its last vector."""
    with EchoWorker(real_server.url) as worker, gateway(real_server.url) as (client, process):
        yield client, worker, process


def infer(client: httpx.Client, contexts: Any, *, binary: bool = False, **more: Any) -> httpx.Response:
    body, headers = v2(contexts, binary=binary, **more)
    return client.post(INFER, content=body, headers=headers)


def test_a_context_is_answered_the_same_in_json_binary_and_plainly(door: Any, context: Context) -> None:
    client, _, _ = door
    last = context[-1]
    for shape in ((5, 768), (1, 5, 768)):
        for binary in (False, True):
            asked = infer(
                client, context.reshape(shape), binary=binary, parameters={"binary_data_output": binary}
            )
            assert asked.status_code == 200, asked.text
            found = outputs(asked)
            assert np.array_equal(found["vector"], last)
            assert found["confidence"] == [np.float32(0.9)]
            assert (found["served_by"], found["reasons"], found["shed"]) == (["amn"], [""], [""])
    half = infer(client, context.astype("f2"), binary=True)
    assert np.array_equal(outputs(half)["vector"], context.astype("f2")[-1].astype("f4"))
    plain = client.post("/predict", json={"context": context.tolist(), "lane": "code-api"}).json()
    assert np.array_equal(np.float32(plain["vector"]), last)
    for kind in ("<f4", "<f2"):
        packed = msgpack.packb({"version": 1, "context": context.astype(kind).tobytes(), "tokens": 7})
        answer = client.post("/predict", content=packed, headers={"content-type": "application/msgpack"})
        vector = np.frombuffer(msgpack.unpackb(answer.content)["vector"], "<f4")
        assert np.array_equal(vector, last.astype(kind).astype("f4"))


def test_only_the_outputs_that_were_asked_for_come_each_in_its_form(door: Any, context: Context) -> None:
    wanted = [{"name": "margin"}, {"name": "vector", "parameters": {"binary_data": True}}]
    asked = infer(door[0], context, outputs=wanted, id="mine")
    message = json.loads(asked.content[: int(asked.headers["inference-header-content-length"])])
    assert [one["name"] for one in message["outputs"]] == ["margin", "vector"]
    assert ["data" in one for one in message["outputs"]] == [True, False]
    assert message["id"] == "mine"
    assert np.array_equal(outputs(asked)["vector"], context[-1])


def test_what_is_said_beside_a_context_reaches_the_worker(real_server: Any, context: Context) -> None:
    seen: list[Request] = []

    def noting(request: Request) -> list[Reply | Failure]:
        seen.append(request)
        return echo(request)

    said = {"lane": "code-api", "tokens": 9, "sequence": "doc", "position": 4, "request_id": "r-1"}
    with EchoWorker(real_server.url, noting), gateway(real_server.url) as (client, _):
        body, _ = v2(context, parameters={**said, "priority": 1, "timeout": 9_000_000})
        assert client.post(INFER, content=body, headers={"traceparent": TRACE}).status_code == 200
        assert infer(client, context, parameters={"priority": "low"}).status_code == 200
    first, second = seen
    assert (first.lane, first.tokens, first.sequence, first.position) == ("code-api", 9, "doc", 4)
    assert (first.id, first.priority, first.traceparent) == ("r-1", "high", TRACE)
    assert 8_000 < first.expires_at_ms - first.submitted_at_ms <= 9_001
    assert second.priority == "low"
    assert 29_000 < second.expires_at_ms - second.submitted_at_ms <= 30_001


def broken(**changes: Any) -> bytes:
    """A request with another input."""
    tensor = {"name": "context", "datatype": "FP32", "shape": [5, 768], "data": [0.0] * 3840, **changes}
    return json.dumps({"inputs": [tensor]}).encode()


UNIT = [[1.0, *[0.0] * 767]] * 5
SAID: list[tuple[bytes, dict[str, str], int, str, str]] = [
    (b'{"inputs": [,]}', {}, 400, "invalid_request", "at byte 12"),
    (b"", {}, 400, "invalid_request", "at byte 0"),
    (b"[]", {}, 400, "invalid_request", "JSON object"),
    (b"{}", {}, 400, "invalid_request", "inputs"),
    (b"[" * 100_000, {}, 400, "invalid_request", "JSON is wrong"),
    (broken(name="x"), {}, 400, "invalid_request", "'context'"),
    (broken(datatype="INT8"), {}, 400, "invalid_request", "FP32 or FP16"),
    (broken(datatype="FP16"), {}, 400, "invalid_request", "binary"),
    (broken(shape=[5, 767]), {}, 400, "invalid_request", "[n, 5, 768]"),
    (broken(shape=[-1, 5, 768]), {}, 400, "invalid_request", "[n, 5, 768]"),
    (broken(shape=[10**30, 5, 768]), {}, 400, "invalid_request", "[n, 5, 768]"),
    (broken(shape=[10**9, 5, 768]), {}, 413, "payload_too_large", "limit is 256"),
    (broken(data=[0.0] * 3839), {}, 400, "invalid_request", "3839 values"),
    (broken(data=[0.0] * 3839 + [True]), {}, 400, "invalid_request", "value 3839"),
    (broken(data=[0.0] * 3839 + ["1"]), {}, 400, "invalid_request", "value 3839"),
    (broken(data={}), {}, 400, "invalid_request", "list of numbers"),
    (broken(), {}, 400, "bad_norm", "norm"),
    (broken(data=[1e300] * 3840), {}, 400, "not_finite", "infinity"),
    (broken(parameters={"binary_data_size": 5}), {}, 400, "invalid_request", "one of them"),
    (broken(parameters={"shared_memory_region": "x"}), {}, 400, "invalid_request", "not known"),
    (v2(np.float32(UNIT), parameters={"lane": "nope"})[0], {}, 400, "unknown_lane", "general"),
    (v2(np.float32(UNIT), parameters={"lanes": "x"})[0], {}, 400, "invalid_request", "lane, tokens"),
    (v2(np.float32(UNIT), parameters={"tokens": 1.5})[0], {}, 400, "invalid_request", "tokens is 1.5"),
    (v2(np.float32(UNIT), outputs=[{"name": "x"}])[0], {}, 400, "invalid_request", "vector, confidence"),
    (b"{}" + bytes(9), {"Inference-Header-Content-Length": "12"}, 400, "invalid_request", "11 bytes"),
    (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "invalid_request", "2 bytes"),
    (b"{}", {"Content-Encoding": "gzip"}, 415, "unsupported_encoding", "compression"),
    (bytes(8 * 1024**2 + 1), {}, 413, "payload_too_large", "8388608"),
]


def test_bad_input_is_refused_with_its_place_and_what_was_expected(door: Any, context: Context) -> None:
    client, worker, _ = door
    for body, headers, status, code, words in SAID:
        answer = client.post(INFER, content=body, headers=headers)
        said = answer.json()
        assert (answer.status_code, said["code"]) == (status, code), (body[:200], said)
        assert words in said["error"], said
        assert said["retryable"] is False
    body, headers = v2(context, binary=True)
    for cut in (1, 4, 15_359):
        said = client.post(INFER, content=body[:-cut], headers=headers).json()
        begin = int(headers["Inference-Header-Content-Length"])
        assert said["offset"] == begin
        assert f"has 15360 bytes; {15_360 - cut} bytes follow" in said["error"]
    plain = {"content-type": "application/msgpack"}
    for packed, words in ((b"\xc1", "msgpack"), (msgpack.packb({"version": 1, "context": b"1"}), "15360")):
        answer = client.post("/predict", content=packed, headers=plain)
        assert answer.status_code == 400
        assert words in answer.json()["error"]
    assert client.post("/predict", content=b"x", headers={"content-type": "text/x"}).status_code == 415
    assert client.post("/truth", json={"request_id": "r"}).status_code == 400
    assert client.get(INFER).status_code == 405
    assert client.get("/v2/models/amn/versions/2").status_code == 404
    assert worker.seen == []
    assert infer(client, context).status_code == 200  # and it goes on


TEXT, FLAG = [None, True, 5, 1.5, [], {}, "x" * 513], [None, 0, 1, 1.5, "true", []]
WHOLE = [None, True, 1.0, 1.5, "5", [], 2**31, -2, -(2**63), 1e30]
#: By parameter: what it may not be, and the range that the refusal names.
WRONG: dict[str, tuple[list[Any], str]] = {
    "lane": (TEXT, "512"),
    "tokens": ([*WHOLE, -1], "0 to 2147483647"),
    "deadline_ms": (
        [True, "5", [], 0, -1, -0.5, 600_000.1, 1e300, 2**63, float("nan"), float("inf"), -float("inf")],
        "above 0, and of 600000 at most",
    ),
    "sequence": (TEXT, "512"),
    "position": (WHOLE, "-1 to 2147483647"),
    "domain": (TEXT, "512"),
    "escalate": (FLAG, "True or False"),
    "normalize": (FLAG, "True or False"),
    "request_id": ([None, 5, "a b", "x" * 65, "\u00e9", "a/b"], ""),
    "priority": ([None, True, 4, -1, 1.0, "urgent", [], {}], "high, normal, low, or 1 to 3"),
    "timeout": ([None, True, 1.5, "5", -1, 600_000_001, 2**63], "0, for none, to 600000000"),
    "binary_data_output": (FLAG, "true or false"),
}


def test_every_wrong_parameter_is_refused_by_its_name_with_its_value_and_the_range(
    door: Any, context: Context
) -> None:
    from ops.gateway.parameters import NAMES

    client, worker, _ = door
    assert WRONG.keys() == {*NAMES, "timeout", "binary_data_output"}
    packed = {"content-type": "application/msgpack"}
    for name, (values, limits) in WRONG.items():
        for value in values:
            parameters = {name: value}
            said = []
            if not isinstance(value, float) or np.isfinite(value):  # JSON has no others
                said.append(infer(client, context, binary=True, parameters=parameters))
            if name != "binary_data_output":
                body = msgpack.packb({"version": 1, "context": context.tobytes(), **parameters})
                said.append(client.post("/predict", content=body, headers=packed))
            for told in said:
                error = told.json()["error"]
                assert (told.status_code, told.json()["code"]) == (400, "invalid_request"), (name, error)
                assert error.startswith(name), error
                assert limits in error, error
                shown = (
                    f"{len(value)} characters"
                    if name in ("lane", "sequence", "domain") and value and isinstance(value, str)
                    else f"{value!r:.80}"
                )
                assert shown in error, error
    assert (
        infer(client, context, outputs=[{"name": "vector", "parameters": {"binary_data": 1}}]).status_code
        == 400
    )
    assert worker.seen == []
    for good in (
        {"deadline_ms": 600_000},
        {"deadline_ms": 0.5e4},
        {"timeout": 0},
        {"priority": 0},
        {"tokens": 2**31 - 1},
    ):
        assert infer(client, context, parameters=good).status_code == 200, good


def test_a_truth_is_reported_by_its_place_also_where_the_answer_was_given_by_another(
    real_server: Any, context: Context
) -> None:
    """Of 100 places, those that may be in the sample are told, and no other."""
    with gateway(real_server.url) as (client, _):
        told = [
            client.post("/truth", json={"sequence": "doc", "position": n, "vector": context[0].tolist()})
            for n in range(100)
        ]
        keys = [f"doc#{n}".encode() for n, one in enumerate(told) if one.json()["sampled"]]
        assert keys == [f"doc#{n}".encode() for n in range(100) if sampled(f"doc#{n}", RATE_MAX)] != []
        assert [fields[b"key"] for _, fields in real_server.admin.xrange(KEYS.truths)] == keys
        for wrong, words in (
            ({"sequence": "doc"}, "sequence and position"),
            ({"request_id": "r", "sequence": "doc", "position": 1}, "sequence and position"),
            ({"sequence": "doc", "position": -1}, "-1"),
            ({"sequence": "", "position": 1}, "empty"),
            ({"sequence": "doc", "position": True}, "2147483647"),
            ({"request_id": "a b"}, "a b"),
        ):
            refused = client.post("/truth", json={**wrong, "vector": context[0].tolist()})
            assert refused.status_code == 400, wrong
            assert words in refused.json()["error"], refused.text


def test_a_truth_is_reported_for_an_answer(door: Any, context: Context) -> None:
    client, _, _ = door
    answer = client.post("/predict", json={"context": context.tolist()}).json()
    told = client.post("/truth", json={"request_id": answer["request_id"], "vector": context[0].tolist()})
    assert told.json() in ({"sampled": True}, {"sampled": False})
    told = client.post("/truth", json={"request_id": answer["request_id"], "vector": [2.0] * 768})
    assert told.json()["code"] == "bad_norm"


def test_a_repeat_under_the_same_id_gets_the_answer_and_is_computed_once(door: Any, contexts: Any) -> None:
    client, worker, _ = door
    first, second = (infer(client, contexts(1)[0], parameters={"request_id": "mine"}) for _ in range(2))
    assert first.content == second.content
    assert worker.seen == ["mine"]
    with gateway(worker.queue.settings.producer.url) as (other, _):
        refused = infer(other, contexts(1)[0], parameters={"request_id": "mine"})
        assert (refused.status_code, refused.json()["code"]) == (409, "duplicate_request")


def test_a_repeat_after_a_failure_gets_the_same_failure(real_server: Any, context: Context) -> None:
    def failing(request: Request) -> list[Reply | Failure]:
        return [Failure(id=request.id, code="inference_failed", message="of no use", retryable=False)]

    with EchoWorker(real_server.url, failing) as worker, gateway(real_server.url) as (client, _):
        told = [infer(client, context, parameters={"request_id": "mine"}) for _ in range(3)]
        assert [one.status_code for one in told] == [500] * 3
        assert [one.json()["code"] for one in told] == ["inference_failed"] * 3
        assert worker.seen == ["mine"]


def test_a_repeat_after_a_deadline_that_nobody_read_is_sent_anew(real_server: Any, context: Context) -> None:
    with gateway(real_server.url) as (client, _):
        late = infer(client, context, parameters={"request_id": "mine", "deadline_ms": 50})
        assert (late.status_code, late.json()["code"]) == (504, "result_timeout")
        wait_until(lambda: real_server.admin.xlen(KEYS.requests) == 0)  # taken back: nobody waits for it
        with EchoWorker(real_server.url) as worker:
            assert infer(client, context, parameters={"request_id": "mine"}).status_code == 200
            assert worker.seen == ["mine"]


def test_a_repeat_of_what_a_worker_has_waits_for_its_own_deadline(real_server: Any, context: Context) -> None:
    go = threading.Event()

    def slow(request: Request) -> list[Reply | Failure]:
        assert go.wait(20)
        return echo(request)

    with EchoWorker(real_server.url, slow) as worker, gateway(real_server.url) as (client, _):
        body: dict[str, Any] = {"parameters": {"request_id": "mine", "deadline_ms": 300}}
        assert infer(client, context, **body).json()["code"] == "result_timeout"
        threading.Timer(0.5, go.set).start()
        assert infer(client, context, parameters={"request_id": "mine"}).status_code == 200
        assert worker.seen == ["mine"]


def test_an_id_of_other_contexts_is_refused(real_server: Any, contexts: Any) -> None:
    one, other = contexts(2)
    mine, many = ({"parameters": {"request_id": name}} for name in ("mine", "many"))
    with service(real_server.url), gateway(real_server.url) as (client, _):
        assert infer(client, one, **mine).status_code == infer(client, contexts(2), **many).status_code == 200
        for told in (
            infer(client, other, **mine),
            infer(client, contexts(2), **mine),
            infer(client, one, **many),
            infer(client, one, parameters={"request_id": "mine", "tokens": 5}),
            *(
                client.post("/predict", json={"context": other.tolist(), "request_id": name})
                for name in ("mine", "many")
            ),
        ):
            assert (told.status_code, told.json()["code"]) == (409, "duplicate_request"), told.text
            assert "other contexts or parameters" in told.json()["error"]
        for binary in (False, True):
            assert infer(client, one, binary=binary, **mine).status_code == 200
        plain = client.post("/predict", json={"context": one.tolist(), "request_id": "mine"})
        assert plain.status_code == 200
        assert real_server.admin.hget(KEYS.stats, "answered") == b"2"


def hang_up(client: httpx.Client, body: bytes) -> socket.socket:
    """A request on a connection of its own, that has been sent and not answered."""
    opened = socket.create_connection((client.base_url.host, client.base_url.port))
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    opened.sendall(head.encode() + body)
    return opened


def test_a_client_who_hangs_up_takes_the_request_back(real_server: Any, context: Context) -> None:
    admin = real_server.admin
    with gateway(real_server.url) as (client, _):
        body, _ = v2(context, parameters={"request_id": "mine"})
        opened = [hang_up(client, body) for _ in range(2)]
        wait_until(lambda: admin.xlen(KEYS.requests) == 1)
        time.sleep(0.2)
        opened[0].close()
        wait_until(lambda: "amn_gateway_hangups 1.0" in client.get("/metrics").text)
        time.sleep(0.2)
        assert admin.xlen(KEYS.requests) == 1  # somebody else waits for it
        opened[1].close()
        wait_until(lambda: admin.xlen(KEYS.requests) == 0)
        assert admin.hget(KEYS.stats, "cancelled") == b"1"
        with EchoWorker(real_server.url) as worker:
            assert client.post(INFER, content=body).status_code == 200  # the same id, anew
            assert worker.seen == ["mine"]


def test_deadlines_and_full_queues_have_a_status_of_their_own(real_server: Any, context: Context) -> None:
    admin = real_server.admin
    with gateway(real_server.url) as (client, _):
        late = infer(client, context, parameters={"deadline_ms": 50})
        assert (late.status_code, late.json()["code"]) == (504, "result_timeout")
        with admin.pipeline(transaction=False) as pipe:
            for _ in range(100_000):
                pipe.xadd(KEYS.requests, {"request": b"x"})
            pipe.incrby(KEYS.counters[1], 100_000)
            pipe.execute()
        full = infer(client, context)
        assert (full.status_code, full.json()["code"], full.json()["retryable"]) == (429, "queue_full", True)
        assert full.headers["retry-after"] == "1"


def test_readiness_means_that_a_request_would_be_answered(
    make_server: Callable[..., Server], context: Context
) -> None:
    server = make_server("valkey", arguments=("--appendonly", "yes"))
    with gateway(server.url) as (client, process), server.client() as admin:
        assert client.get("/v2/health/live").status_code == 200
        asked = client.get("/v2/health/ready")
        assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
        assert "no AMN worker" in asked.json()["error"]
        with EchoWorker(server.url):
            wait_until(lambda: say_alive(admin) or client.get("/v2/health/ready").status_code == 200)
            ready = client.get("/v2/models/amn/ready").json()
            assert (ready["model"], ready["queues_not_ready"]) == ("amn@test", [])
            assert 'amn_gateway_ready{queue="main"} 1.0' in client.get("/metrics").text
            server.kill()
            away = infer(client, context)
            assert (away.status_code, away.json()["code"]) == (503, "server_unavailable")
            assert away.headers["retry-after"] == "1"
            wait_until(lambda: client.get("/v2/health/ready").status_code == 503)
            assert "no usable server" in client.get("/v2/health/ready").json()["error"]
            assert 'amn_gateway_ready{queue="main"} 0.0' in client.get("/metrics").text
            server.start()
            wait_until(lambda: infer(client, context).status_code == 200)
        assert process.poll() is None


def test_while_the_server_is_killed_and_started_again_each_request_is_answered_or_told_to_come_again(
    make_server: Callable[..., Server], contexts: Any
) -> None:
    server = make_server("valkey", arguments=("--appendonly", "yes", "--appendfsync", "always"))
    rows, answers, refused = contexts(120), {}, []
    with EchoWorker(server.url), gateway(server.url) as (client, process):

        def ask(number: int) -> None:
            body: dict[str, Any] = {"parameters": {"request_id": f"r-{number}", "deadline_ms": 20_000}}
            while (told := infer(client, rows[number], binary=True, **body)).status_code != 200:
                refused.append((told.status_code, told.json()["code"], told.json()["retryable"]))
                time.sleep(0.1)
            answers[number] = outputs(told)["vector"]

        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, number) for number in range(len(rows))]
            for _ in range(2):
                before = len(answers)
                wait_until(lambda: len(answers) > before + 10)  # noqa: B023
                server.kill()
                assert len(answers) < len(rows)
                time.sleep(0.3)
                server.start()
            for one in asked:
                one.result(60)
        assert process.poll() is None
    assert all(np.array_equal(answers[number], rows[number][-1]) for number in range(len(rows)))
    assert set(refused) <= {(503, "server_unavailable", True)}, Counter(refused)


def test_sigterm_lets_the_requests_under_way_end(real_server: Any, context: Context) -> None:
    with gateway(real_server.url) as (client, process):
        found: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: found.append(infer(client, context)))
        asking.start()
        wait_until(lambda: real_server.admin.xlen(KEYS.requests) == 1)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(client))
        with EchoWorker(real_server.url):
            asking.join(10)
        assert [one.status_code for one in found] == [200]
        assert process.wait(10) == 0


def listens(client: httpx.Client) -> bool:
    try:
        socket.create_connection((client.base_url.host, client.base_url.port)).close()
    except OSError:
        return False
    return True


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(door: Any, context: Context) -> None:
    """Two small writes without TCP_NODELAY take 40 ms, the delay of an acknowledgement."""
    client, _, _ = door
    waits_s = []
    for _ in range(40):
        began_s = time.perf_counter()
        assert infer(client, context, binary=True).status_code == 200
        waits_s.append(time.perf_counter() - began_s)
        time.sleep(0.01)
    assert sorted(waits_s)[10] < 0.035


def test_with_a_token_only_those_who_bear_it_are_answered(real_server: Any, context: Context) -> None:
    with gateway(real_server.url, TOKEN) as (client, _):
        del client.headers["authorization"]
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2", "/metrics", "/openapi.json", "/nowhere", "/v2/models/amn/ready"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
            assert refused.json()["code"] == "unauthorized"
            assert client.get(path, headers={"authorization": "Bearer x"}).status_code == 401
        assert infer(client, context).status_code == 401
        bears = {"authorization": f"Bearer {TOKEN}", "host": "gateway.example.com"}
        assert client.get("/v2", headers=bears).status_code == 200


def test_who_bears_no_token_is_told_whether_it_is_ready_and_no_names(make_server: Any) -> None:
    server = make_server("valkey")
    with ExitStack() as undo:
        client, _ = undo.enter_context(gateway(server.url, TOKEN))
        admin = undo.enter_context(server.client())
        stranger = undo.enter_context(httpx.Client(base_url=client.base_url))
        assert "main" in client.get("/v2/health/ready").json()["error"]
        asked = stranger.get("/v2/health/ready")
        assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
        assert "main" not in asked.text
        undo.enter_context(EchoWorker(server.url))
        wait_until(lambda: say_alive(admin) or stranger.get("/v2/health/ready").status_code == 200)
        assert stranger.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/health/ready").json()["model"] == "amn@test"


def test_without_a_token_it_listens_here_alone_and_only_to_its_own_names(real_server: Any) -> None:
    command = our_python("ops.cli", "gateway", "--host", "0.0.0.0")
    environment = our_environment(REDIS_URL=real_server.url, AMN_GATEWAY_TOKEN="short")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "AMN_GATEWAY_TOKEN" in done.stderr
    with gateway(real_server.url) as (client, _):
        assert client.get("/v2", headers={"host": "evil.example.com"}).status_code == 421
        assert client.post("/predict", headers={"origin": "https://evil.example.com"}).status_code == 403


def test_the_document_is_valid_and_describes_every_address_and_answer(door: Any, context: Context) -> None:
    from jsonschema.exceptions import ValidationError
    from openapi_schema_validator import OAS31Validator
    from openapi_spec_validator import validate

    from ops.gateway.app import Gateway
    from ops.gateway.asking import Asker
    from ops.gateway.parameters import NAMES
    from producer import AsyncProducer

    client, _, _ = door
    assert client.get("/openapi.json").json() == DOCUMENT
    validate(DOCUMENT)
    routes = Gateway(Asker(AsyncProducer()), None).routes  # type: ignore[arg-type]
    paths = {path: next(iter(said)).upper() for path, said in DOCUMENT["paths"].items()}
    for path, (method, _) in routes.items():
        if paths[path] == "$REF":  # an address with the version is the one without it
            assert DOCUMENT["paths"][path]["$ref"].endswith(
                path.replace("/versions/1", "").replace("/", "~1")
            )
            paths[path] = method
    assert paths == {path: method for path, (method, _) in routes.items()}
    schemas = DOCUMENT["components"]["schemas"]
    assert set(NAMES) <= set(schemas["Options"]["properties"])

    def check(value: object, name: str) -> None:
        reference = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
        OAS31Validator(reference).validate(value)

    check(json.loads(v2(context)[0]), "InferenceRequest")
    check(infer(client, context).json(), "InferenceAnswer")
    check(client.post("/predict", json={"context": context.tolist()}).json(), "PlainAnswer")
    truth = {"vector": context[0].tolist()}
    for place in {"request_id": "r"}, {"sequence": "doc", "position": 2**31 - 1}:
        check(truth | place, "Truth")
    for place in (
        {},
        {"request_id": ""},
        {"request_id": "r", "position": 1},
        {"sequence": "doc", "position": 2**31},
    ):
        assert client.post("/truth", json=truth | place).status_code == 400
        with pytest.raises(ValidationError):
            check(truth | place, "Truth")
    for path, name in (("/v2", "Server"), ("/v2/models/amn", "Model"), ("/v2/health/live", "Live")):
        check(client.get(path).json(), name)
    for body, headers, status, _, _ in SAID:
        refused = client.post(INFER, content=body, headers=headers)
        check(refused.json(), "Error")
        assert str(status) in DOCUMENT["paths"][INFER]["post"]["responses"]


async def absorb(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads each request to its end, and says nothing."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def connections() -> Iterator[Callable[[], socket.socket]]:
    """Opens connections to the application under test, which has little patience."""
    with (
        pytest.MonkeyPatch.context() as patched,
        served(absorb, connections_max=150) as port,
        ExitStack() as all_,
    ):
        patched.setattr(protocol, "HEAD_S_MAX", 1.5)
        patched.setattr(protocol, "BODY_S_MAX", 1.5)

        def connected() -> socket.socket:
            opened = all_.enter_context(socket.create_connection(("127.0.0.1", port)))
            opened.settimeout(5)
            return opened

        yield connected


POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
BEGUN = (
    b"GET / HTTP/1.1\r\nX: ",
    POST + b"Content-Length: 99999\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
)


def test_slow_clients_are_refused_in_time_and_others_are_answered_meanwhile() -> None:
    with connections() as connected:
        slow = [(connected(), begun) for _ in range(20) for begun in (*BEGUN, b"", b"\r\n")]
        for one, begun in slow:
            one.sendall(begun)
        answered, ends_s = 0, time.monotonic() + 1
        while time.monotonic() < ends_s:
            with connected() as quick:
                quick.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                answered += quick.recv(64).startswith(b"HTTP/1.1 204 ")
            for one, begun in slow:
                if begun in BEGUN:
                    one.sendall(b"a")  # a byte now and then does not help
        assert answered > 3
        for one, begun in slow:
            said = one.recv(4_096)
            if begun in BEGUN:
                assert said.startswith(b"HTTP/1.1 408 "), said
                assert b'"code": "too_slow"' in said
            else:  # it asked for nothing
                assert said == b"" or b"too_slow" in said


def test_endless_headers_are_refused_and_a_connection_that_waits_makes_room_for_another() -> None:
    with connections() as connected:
        flood = connected()
        flood.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
        assert flood.recv(64).startswith(b"HTTP/1.1 431 ")
        many = [connected() for _ in range(151)]
        assert many[0].recv(64) == b""  # the one that waits longest
        many[-1].sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert many[-1].recv(64).startswith(b"HTTP/1.1 204 ")
