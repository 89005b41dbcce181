"""Decides who may see the page: every request passes here first.

Names of the page that a stranger's web site made up are refused (DNS rebinding), a token is asked for where
there is one, and no answer goes out without the headers that keep other sites' scripts and frames away.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlencode

import structlog
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = structlog.get_logger("amn.page")
COOKIE = "amn_page"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_OPEN = ("/healthz", "/login")


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
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refused(Request(scope)) or self._page
        try:
            await answer(scope, receive, with_headers)
        except ClientDisconnect:
            pass  # who asked has left before the end of the request
        except Exception:
            _LOG.exception("page_failed", path=scope["path"])
            if not started:
                await PlainTextResponse("the page's process failed; its log says why", 500)(
                    scope, receive, with_headers
                )

    def _refused(self, request: Request) -> Response | None:
        if not self._is_ours(request.headers.get("host", "")):
            said = "this page is not known under that name; start it with --name NAME\n"
            return PlainTextResponse(said, 421)
        if request.method not in ("GET", "HEAD") and not self._is_same_site(request.headers):
            return PlainTextResponse("a request from another site is refused\n", 403)
        if not self._token or request.url.path in _OPEN:
            return None
        if request.query_params.get("token"):
            return self._entered(request)
        if self._may_enter(request):
            return None
        if request.url.path == "/":
            return RedirectResponse("/login", 303)
        return PlainTextResponse("a token is needed: open /login\n", 401, {"www-authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        """True for an address or a name of ours; another name may be one that a stranger points here."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        try:
            ipaddress.ip_address(name.strip("[]"))
            return True
        except ValueError:
            return name.lower() in self._names

    @staticmethod
    def _is_same_site(headers: Headers) -> bool:
        """True if a browser says that our own page sends this, or no browser does."""
        origin = headers.get("origin", "")
        ours = not origin or origin.partition("://")[2] == headers.get("host")
        return ours and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")

    def _may_enter(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode("utf-8", "replace")
        cookie = request.cookies.get(COOKIE, "").encode("utf-8", "replace")
        bears = hmac.compare_digest(given, b"Bearer " + self._token)
        return hmac.compare_digest(cookie, self._pass.encode()) or bears

    def _entered(self, request: Request) -> Response:
        """Takes a token out of the address, so that no history keeps it."""
        left = [(n, v) for n, v in request.query_params.multi_items() if n != "token"]
        query = f"?{urlencode(left)}" if left else ""
        path = "/" + request.url.path.lstrip("/")  # never "//host", which leads elsewhere
        return self.entered(
            request.query_params["token"], f"{path}{query}", secure=request.url.scheme == "https"
        )

    def entered(self, token: str, to: str, *, secure: bool) -> Response:
        """Returns the answer to a token: the page and a cookie, or a refusal."""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            return PlainTextResponse("that is not the token\n", 403)
        response = RedirectResponse(to, 303)
        response.set_cookie(COOKIE, self._pass, httponly=True, samesite="strict", secure=secure, path="/")
        return response


def form_of(body: bytes) -> QueryParams:
    """The fields of a small form."""
    return QueryParams(body.decode("utf-8", "replace"))
