"""Decides who may see the page: every request passes here first.

Names of the page that a stranger's web site made up are refused (DNS rebinding), a token is asked for where
there is one, and no answer goes out without the headers that keep other sites' scripts and frames away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ops.web.access import bears, is_ours, is_same_site

COOKIE = "amn_page"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # Not "no-referrer": with it, a browser names no origin for the page's own form either.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_OPEN = ("/healthz", "/login")
_BODY_BYTES_MAX = 4_096
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Log in</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><h1>The queue's page</h1>
<form method="post" action="login"><input autocomplete="username" value="page" hidden><label>Token
<input type="password" name="token" autocomplete="current-password" autofocus required></label>
<button>Log in</button></form></html>"""


class Doorkeeper:
    """Wraps the page.

    Args:
        token: Asked for where it is not empty.    names: Host names, beside addresses and localhost,
            under which the page may be asked for.
    """

    def __init__(self, page: ASGIApp, token: str = "", names: Iterable[str] = ()) -> None:
        self._page, self._token = page, token.encode()
        self._names = {"localhost", *(name.lower() for name in names)}
        self._pass = hmac.new(self._token, b"amn page cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers itself, or lets the page answer."""
        if scope["type"] != "http":
            await self._page(scope, receive, send)
            return

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope, receive)
        answer = self._refused(request) or self._page
        try:
            if answer is self._page and request.url.path == "/login":
                answer = await self._login(request)
        except ClientDisconnect:  # in the middle of the form: nobody is left to be answered
            return
        await answer(scope, receive, adding)

    def _refused(self, request: Request) -> Response | None:
        if not is_ours(request.headers.get("host", ""), self._names):
            said = "this page is not known under that name; start it with --name NAME\n"
            return PlainTextResponse(said, 421)
        if request.method not in ("GET", "HEAD") and not is_same_site(request.headers):
            return PlainTextResponse("a request from another site is refused\n", 403)
        if not self._token or request.url.path in _OPEN:
            return None
        if request.query_params.get("token"):
            # The token leaves the address, which a history keeps; "//host" would lead elsewhere.
            left = [(n, v) for n, v in request.query_params.multi_items() if n != "token"]
            to = f"/{request.url.path.lstrip('/')}{'?' if left else ''}{urlencode(left)}"
            return self._entered(request, request.query_params["token"], to)
        if self._may_enter(request):
            return None
        if request.url.path == "/":
            return RedirectResponse("/login", 303)
        return PlainTextResponse("a token is needed: open /login\n", 401, {"www-authenticate": "Bearer"})

    def _may_enter(self, request: Request) -> bool:
        cookie = request.cookies.get(COOKIE, "").encode("utf-8", "replace")
        entered = hmac.compare_digest(cookie, self._pass.encode())
        return bears(request.headers, self._token) or entered

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(_LOGIN)
        fields = QueryParams((await small_body(request)).decode("utf-8", "replace"))
        return self._entered(request, fields.get("token", ""), "/")

    def _entered(self, request: Request, token: str, to: str) -> Response:
        """Returns the answer to a token: the page and a cookie, or a refusal."""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            return PlainTextResponse("that is not the token\n", 403)
        response = RedirectResponse(to, 303)
        # Whoever makes this header up gets a cookie that is sent less often.
        secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        response.set_cookie(COOKIE, self._pass, httponly=True, samesite="strict", secure=secure, path="/")
        return response


async def small_body(request: Request) -> bytes:
    """Returns the body, or nothing of one that is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY_BYTES_MAX:
            return b""
    return body
