"""The gateway's addresses, and who may ask: every request passes `Gateway` first."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ops.gateway import answers, plain, tensors
from ops.gateway.asking import Asker
from ops.gateway.errors import Refused, bad, refused, response
from ops.gateway.parameters import options
from ops.gateway.readiness import Readiness
from ops.gateway.settings import BODIES_BYTES_MAX, BODY_BYTES_MAX, MODEL, VERSION
from ops.web.access import bears, is_ours, is_same_site
from producer.errors import QueueError
from producer.options import Options
from producer.sampling import sample_key

_LOG = structlog.get_logger("amn.gateway")
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_DOCUMENT = Path(__file__).with_name("openapi.json")
_NAMES = ("localhost",)
#: These are asked by probes that bear no token, and say to such no names.
_OPEN = ("/v2/health/live", "/v2/health/ready")
_BOUNDS_S = (0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
Endpoint = Callable[[Request, bytes], Awaitable[Response]]


class Gateway:
    """The ASGI application.

    Args:
        look: Says which partitions of the queue would answer.
        token: Asked for where it is not empty.
    """

    def __init__(self, asker: Asker, look: Callable[[], Awaitable[Readiness]], token: str = "") -> None:
        self._asker, self._look, self._token = asker, look, token.encode()
        self._bodies_bytes = 0
        self.routes = self._routes()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "amn_gateway_requests", "Requests by address and status.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "amn_gateway_request_seconds",
            "From the headers to the whole answer.",
            ("route",),
            buckets=_BOUNDS_S,
            registry=registry,
        )
        said = "1 where the queue, or the partition, would answer a request."
        self._ready = Gauge("amn_gateway_ready", said, ("queue",), registry=registry)
        for name, said, read in (
            ("amn_gateway_in_flight", "Requests without their answer.", lambda: asker.producer.in_flight),
            ("amn_gateway_hangups", "Requests whose clients went before the answer.", lambda: asker.hangups),
        ):
            Gauge(name, said, registry=registry).set_function(read)

    def _routes(self) -> dict[str, tuple[str, Endpoint]]:
        """By path, the method and what answers; a model's addresses exist with and without its version."""
        server = {"name": "amn-queue", "version": "1", "extensions": ["binary_tensor_data"]}
        about = {"name": MODEL, "versions": [VERSION], "platform": "amn-queue"}
        outputs = [
            {"name": name, "datatype": kind, "shape": shape}
            for name, (kind, shape) in answers.OUTPUTS.items()
        ]
        inputs = [{"name": tensors.INPUT, "datatype": "FP32", "shape": [-1, 5, 768]}]
        found: dict[str, tuple[str, Endpoint]] = {
            "/v2": ("GET", _always(server)),
            "/v2/health/live": ("GET", _always({"live": True})),
            "/v2/health/ready": ("GET", self._is_ready),
            "/predict": ("POST", self._predict),
            "/truth": ("POST", self._truth),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", _always(orjson.loads(_DOCUMENT.read_bytes()))),
        }
        for model in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/{VERSION}"):
            found[model] = ("GET", _always(about | {"inputs": inputs, "outputs": outputs}))
            found[f"{model}/ready"] = ("GET", self._is_ready)
            found[f"{model}/infer"] = ("POST", self._infer)
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever goes wrong, with a status and a JSON object that says what."""
        if scope["type"] != "http":
            return
        began_s, request = time.perf_counter(), Request(scope, receive)
        path = scope["path"].rstrip("/") or "/"
        try:
            answer = await self._answered(request, path)
        except ClientDisconnect:
            answer = response(Refused("the client went before its request was complete", 499, "client_left"))
        except Refused as refusal:
            answer = response(refusal)
        except QueueError as error:
            answer = response(refused(error))
        except Exception:
            _LOG.exception("gateway_failed", path=path)
            answer = response(Refused("the gateway failed; its log says why", 500, "internal"))
        answer.raw_headers += HEADERS
        await answer(scope, receive, send)
        route = path if path in self.routes else "other"
        self._requests.labels(route, answer.status_code).inc()
        self._seconds.labels(route).observe(time.perf_counter() - began_s)

    async def _answered(self, request: Request, path: str) -> Response:
        """Lets in who may ask, and answers.

        Raises:
            Refused, QueueError: There is no other answer.
        """
        headers = request.headers
        if not self._token and not is_ours(headers.get("host", ""), _NAMES):
            raise Refused("without a token, only addresses and localhost are answered", 421, "wrong_host")
        if not is_same_site(headers):
            raise Refused("a request from another site is refused", 403, "other_site")
        if path not in _OPEN and not self._trusts(request):
            raise Refused("send the header Authorization: Bearer TOKEN", 401, "unauthorized")
        if path not in self.routes:
            raise Refused(f"{path!r:.200} is no address of this gateway; see /openapi.json", 404, "not_found")
        method, endpoint = self.routes[path]
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            said = f"{path} answers {method}, and not {request.method!r:.20}"
            raise Refused(said, 405, "method_not_allowed")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused("send the body as it is, without compression", 415, "unsupported_encoding")
        if method == "GET":
            return await endpoint(request, b"")
        body = await self._body(request)
        try:
            return await endpoint(request, body)
        finally:
            self._bodies_bytes -= len(body)

    def _trusts(self, request: Request) -> bool:
        return not self._token or bears(request.headers, self._token)

    async def _is_ready(self, request: Request, _: bytes) -> Response:
        found, trusts = await self._look(), self._trusts(request)
        without = {queue: one for queue, one in found.items() if isinstance(one, str)}
        workers = [worker for one in found.values() if not isinstance(one, str) for worker in one]
        if not workers:
            why = dict.fromkeys(without.values()) if trusts else ("bear the token to be told why",)
            raise Refused("; ".join(why), 503, "not_ready")
        about = {"workers": len(workers), "model": workers[0].model, "queues_not_ready": list(without)}
        return _json({"ready": True} | ({"name": MODEL} | about if trusts else {}))

    async def _infer(self, request: Request, body: bytes) -> Response:
        inference = tensors.parse(body, request.headers.get(answers.HEAD_LENGTH))
        answers.check(inference)
        asked = options(inference.parameters, request.headers.get("traceparent", ""))
        answer = await self._asker.ask(inference.contexts, asked, request.receive)
        found, head_bytes = answers.encode(inference, answer)
        if head_bytes is None:
            return Response(found, media_type=plain.JSON)
        headers = {answers.HEAD_LENGTH: str(head_bytes)}
        return Response(found, headers=headers, media_type="application/octet-stream")

    async def _predict(self, request: Request, body: bytes) -> Response:
        media_type = _media_type(request)
        fields = plain.fields_of(body, media_type)
        context = plain.context_of(fields.pop("context", None))
        asked = options(fields, request.headers.get("traceparent", ""))
        reply: Any = await self._asker.ask(context, asked, request.receive)
        binary = media_type == plain.MSGPACK
        vector = reply.vector.astype("<f4").tobytes() if binary else reply.vector.tolist()
        return Response(plain.encode(answers.plain(reply, vector), media_type), media_type=media_type)

    async def _truth(self, request: Request, body: bytes) -> Response:
        media_type = _media_type(request)
        fields = plain.fields_of(body, media_type)
        vector = plain.vector_of(fields.pop("vector", None))
        sampled = await self._asker.producer.report_truth(_truth_of(fields), vector)
        return Response(plain.encode({"sampled": sampled}, media_type), media_type=media_type)

    async def _metrics(self, _: Request, __: bytes) -> Response:
        for queue, one in (await self._look()).items():
            self._ready.labels(queue).set(not isinstance(one, str))
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _body(self, request: Request) -> bytes:
        """The body; its bytes are on the account until whoever asked for it takes them off.

        Raises:
            Refused: It is too large, or all bodies together are.
            ClientDisconnect: It did not come to its end.
        """
        parts, size = [], 0
        try:
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                self._bodies_bytes += len(part)
                if size > BODY_BYTES_MAX:
                    raise Refused(f"the limit of a body is {BODY_BYTES_MAX} bytes", 413, "payload_too_large")
                if self._bodies_bytes > BODIES_BYTES_MAX:
                    raise Refused("too many large requests are under way; retry later", 429, "gateway_full")
        except BaseException:
            self._bodies_bytes -= size
            raise
        return b"".join(parts)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _truth_of(fields: Mapping[str, Any]) -> str:
    """The name of the request that a truth belongs to: its id, or its place in a sequence."""
    if fields.keys() not in ({"request_id"}, {"sequence", "position"}):
        raise bad(
            "send vector and either request_id (of the answer) or both sequence and position (of the request)"
        )
    checked = Options(**fields)
    name = sample_key(checked.request_id, checked.sequence, checked.position)
    if not name:
        raise bad("request_id and sequence are empty, or position is -1; send those of a request")
    return name


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type=plain.JSON)


def _always(value: object) -> Endpoint:
    async def said(_: Request, __: bytes) -> Response:
        return _json(value)

    return said
