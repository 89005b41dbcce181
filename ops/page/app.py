"""The page's addresses: static files, the snapshot and its events, the history, letters, actions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from amn.output import strict_json
from ops.page.actions import ActionRefused, Actions
from ops.page.feed import Feed
from ops.page.guard import small_body
from producer.errors import ServerError

_LOG = structlog.get_logger("amn.page")
STATIC = Path(__file__).with_name("static")
#: A viewer who takes no byte of an event for so long is dropped.
SEND_S_MAX = 5.0


def page(
    feed: Feed,
    history: Callable[[], Awaitable[bytes]],
    letter: Callable[[str], dict[str, Any] | None],
    actions: Actions | None = None,
) -> Starlette:
    """The whole page as an ASGI application; a `Doorkeeper` before it says who may see it.

    Args:
        history: Returns the history as JSON.
        letter: Returns a dead letter by its id, or None; may wait for the server.
        actions: None where nothing may be changed.
    """

    async def peek(request: Request) -> Response:
        name = request.path_params["id"]
        found = await asyncio.to_thread(letter, name)
        return _json(found) if found else _error(404, f"there is no dead letter {name:.50}")

    async def events(_: Request) -> Response:
        return _Events(feed)

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    routes = [
        Route("/api/snapshot", _answers(feed.latest)),
        Route("/api/history", _answers(history)),
        Route("/api/events", events),
        Route("/api/letters/{id}", peek),
        Route("/healthz", health),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ]
    if actions is not None:
        routes.insert(0, Route("/api/actions/{name}", _act(actions), methods=["GET", "POST"]))
    return Starlette(routes=routes, exception_handlers=_ERRORS)


def _answers(ask: Callable[[], Awaitable[bytes]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(await ask(), media_type="application/json")

    return answer


def _failed(request: Request, error: Exception) -> Response:
    _LOG.error("page_failed", path=request.url.path, exc_info=error)
    return PlainTextResponse("the page's process failed; its log says why", 500)


_ERRORS: Any = {
    ServerError: lambda _, error: _error(503, str(error)),
    ClientDisconnect: lambda _, __: Response(status_code=499),  # nobody reads it
    Exception: _failed,
}


def _act(actions: Actions) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint: GET says what an action would do, POST does it, one at a time."""
    one_at_a_time = asyncio.Lock()

    async def act(request: Request) -> Response:
        name, who = request.path_params["name"], request.client.host if request.client else "?"
        try:
            if request.method == "GET":
                fields = dict(request.query_params)
                return _json(await asyncio.to_thread(actions.preview, name, fields))
            if request.headers.get("x-amn-page") != "1" or not _is_json(request):
                return _error(403, "an action is JSON, with the header x-amn-page: 1")
            fields = json.loads(await small_body(request) or b"0")
            if not isinstance(fields, dict):
                return _error(400, "an action has fields")
            async with one_at_a_time:
                return _json(await asyncio.to_thread(actions.do, name, fields, who))
        except ActionRefused as error:
            return _error(409 if error.count is not None else 400, str(error), count=error.count)
        except (ValueError, RecursionError):
            return _error(400, "the action's fields are no JSON")

    return act


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip() == "application/json"


def _json(value: object, status: int = 200) -> Response:
    return Response(strict_json(value), status, media_type="application/json")


def _error(status: int, text: str, **more: object) -> Response:
    return _json({"error": text, **more}, status)


class _Events(StreamingResponse):
    """The stream of snapshots, until the viewer goes, or takes nothing for `SEND_S_MAX`."""

    def __init__(self, feed: Feed) -> None:
        self._bodies = feed.follow()
        events = (b"event: snapshot\ndata: " + body + b"\n\n" async for body in self._bodies)
        super().__init__(events, headers={"x-accel-buffering": "no"}, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_S_MAX):
                await send(message)

        async with aclosing(self._bodies):
            # The connection closes now; the kernel drops what is unsent. With ASGI 2.4 and later, Starlette
            # says of every failure to send that the viewer went.
            with suppress(TimeoutError, ClientDisconnect):
                await super().__call__(scope, receive, in_time)
