"""The page's addresses: static files, the snapshot, its stream of events, the history."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from ops.page.feed import Feed
from ops.page.guard import Doorkeeper, form_of

STATIC = Path(__file__).with_name("static")
#: A viewer who takes no byte of an event for so long is dropped.
SEND_S_MAX = 5.0
_FORM_BYTES_MAX = 4_096
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Log in</title>
<meta name="viewport" content="width=device-width"><h1>The queue's page</h1>
<form method="post" action="/login">
<label>Token <input type="password" name="token" autofocus required></label>
<button>Log in</button></form></html>"""
#: Returns the history of so many minutes as JSON.
History = Callable[[int], Awaitable[bytes]]


def page(feed: Feed, history: History, *, token: str = "", names: tuple[str, ...] = ()) -> Doorkeeper:
    """The whole page as an ASGI application."""

    async def snapshot(_: Request) -> Response:
        return Response(await feed.latest(), media_type="application/json")

    async def past(request: Request) -> Response:
        try:
            minutes = min(max(int(request.query_params.get("minutes", "1440")), 1), 1_440)
        except ValueError:
            return PlainTextResponse("minutes must be a whole number\n", 400)
        return Response(await history(minutes), media_type="application/json")

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def login(request: Request) -> Response:
        if request.method == "GET":
            return HTMLResponse(_LOGIN)
        body = await small_body(request, _FORM_BYTES_MAX)
        return guard.entered(form_of(body).get("token", ""), "/", request.url.scheme == "https")

    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        await send_events(feed, receive, send)

    routes = [
        Route("/api/snapshot", snapshot),
        Route("/api/history", past),
        Route("/api/events", _Stream(events)),
        Route("/healthz", health),
        Route("/login", login, methods=["GET", "POST"]),
        Mount("/", StaticFiles(directory=STATIC, html=True, check_dir=False)),
    ]
    guard = Doorkeeper(Starlette(routes=routes), token, names)
    return guard


class _Stream:
    """An endpoint that is an ASGI application of its own."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


async def send_events(feed: Feed, receive: Receive, send: Send) -> None:
    """Sends each snapshot as an event until the viewer goes, or takes nothing for `SEND_S_MAX`."""
    headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    sending = asyncio.create_task(_send_each(feed, send))
    leaving = asyncio.create_task(_left(receive))
    done, rest = await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


async def _send_each(feed: Feed, send: Send) -> None:
    async with contextlib.aclosing(feed.follow()) as bodies:
        async for body in bodies:
            event = b"event: snapshot\ndata: " + body + b"\n\n"
            try:
                async with asyncio.timeout(SEND_S_MAX):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except TimeoutError:
                return  # the connection is closed with this request, and the kernel lets go of what is unsent
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def small_body(request: Request, bytes_max: int) -> bytes:
    """Returns the body, or nothing of one that is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            return b""
    return body
