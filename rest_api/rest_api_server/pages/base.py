"""What every page shares: who is signed in, the rules that a browser is told, errors as pages."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from hashlib import sha256
from http.client import responses
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from msgspec import Struct

from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.directory.model import Identity
from rest_api.rest_api_server.errors import FORBIDDEN, UNAUTHORIZED, URL_TOO_LONG
from rest_api.rest_api_server.pages.parts import Part, part
from rest_api.rest_api_server.pages.render import render
from tools.tornado_service.application import NotFoundHandler, ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.streamed import Streamed

T = TypeVar("T")
HTML = "text/html; charset=utf-8"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SESSION = "metroculus_session"
SECURE_SESSION = f"__Host-{SESSION}"
"""With this beginning a browser takes the cookie over TLS alone, and from this host alone."""
SIGN_IN = "/sign-in"
LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
LONGEST_ADDRESS = 4096
"""Of a page: each of its links holds it."""
ASCII = "".join(map(chr, range(0x21, 0x7F)))
PARTS_AT_ONCE = 2
"""Questions of one page at once: a cluster has four places, and others ask about it, too."""
PAGE_SECONDS = 120.0
"""To make and send the rest of a page whose beginning is sent."""
LONGEST_SECRET = 512
LONG_AGO = 86400.0


def is_html_wanted(accepted: str) -> bool:
    """Whether who asks is a browser that shows a page."""
    return "text/html" in accepted


def safe_target(text: str) -> str:
    """Where to go after signing in: a path of ours, whatever is asked for."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    own = not parts.scheme and not parts.netloc and re.fullmatch(r"/([^/\\\x00-\x20\x7f][^\\\x00-\x20\x7f]*)?", text)
    return quote(text, safe=ASCII) if own and len(text) <= LONGEST_ADDRESS else "/"


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def csrf_token(secret: str) -> str:
    """What a form of a session carries: another page that sends the form does not know it."""
    return hmac.new(secret.encode(), b"csrf", sha256).hexdigest()


class WebHandler(ServiceHandler):
    """Answers with pages."""

    def clear(self) -> None:
        super().clear()
        self._tell_browser()

    def _tell_browser(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    @property
    def over_tls(self) -> bool:
        """Whether the browser's connection is encrypted, as far as we or a proxy of the operator's can tell."""
        peer = getattr(getattr(self.request.connection, "context", None), "remote_ip", "")
        forwarded = self.request.headers.get_list("X-Forwarded-Proto")
        if self.service.proxies.trusts(peer or "") and forwarded:
            return forwarded == ["https"]
        return self.request.protocol == "https"

    @property
    def on_loopback(self) -> bool:
        """Whether the browser is on this machine: it calls itself so, comes from here, and nobody stands between."""
        asked = self.request.headers
        if "X-Forwarded-Proto" in asked or "X-Forwarded-For" in asked or "Forwarded" in asked:
            return False
        peer = getattr(getattr(self.request.connection, "context", None), "remote_ip", "") or ""
        from_here = peer == "::1" or peer.startswith("127.")
        return from_here and "Host" in asked and LOOPBACK.fullmatch(self.request.host) is not None

    def page(self, template: str, **values: Any) -> bytes:
        """A page's bytes, to be sent."""
        self.set_header("Content-Type", HTML)
        return render(template, signed_in=None, csrf="", **values)

    @property
    def session_secret(self) -> str | None:
        """What the browser's cookie says."""
        # Over TLS the other name is anybody's who has a neighbouring host.
        cookie = self.request.cookies.get(SECURE_SESSION if self.over_tls else SESSION)
        return str(cookie.value) if cookie is not None and 0 < len(cookie.value) <= LONGEST_SECRET else None

    def forget_cookies(self) -> None:
        """Have the browser forget its session, by either name; one is taken only with ``Secure``."""
        for name in (SESSION, SECURE_SESSION):
            self.set_cookie(name, "", path="/", expires=LONG_AGO, secure=name == SECURE_SESSION)

    def go(self, path: str) -> None:
        """Another page, asked for anew."""
        self.set_status(303)
        self.set_header("Location", path)
        self.clear_header("Content-Type")
        self.finish()

    def refuse_other_sites(self) -> None:
        """Raises: ApiError: a form was sent by a page that is not ours."""
        asked = self.request.headers
        site, origin = asked.get("Sec-Fetch-Site"), asked.get("Origin")
        own = site == "same-origin" if site is not None else origin is None or _host_of(origin) == self.request.host
        if not own:
            raise ApiError(FORBIDDEN, "this form was sent from another site")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = self._as_api_error(kwargs.get("exc_info", (None, None, None))[1])
        if not is_html_wanted(self.request.headers.get("Accept", "")):
            super().write_error(status_code, **kwargs)
            return
        self._error_code = error.code.code
        self.clear()
        if error.code == UNAUTHORIZED and (self.request.method == "GET" or self.request.path == "/sign-out"):
            target = safe_target(self.request.uri or "/") if self.request.method == "GET" else "/"
            self.go(f"{SIGN_IN}?next={quote(target, safe='')}" if target != "/" else SIGN_IN)
            return
        if error.code == UNAUTHORIZED:
            error = ApiError(UNAUTHORIZED, "your session has ended: sign in again, and send the form once more")
        status = error.code.status
        self.set_status(status, responses.get(status))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        again = (
            self.request.path if self.request.query and status in (400, 414) and self.request.method == "GET" else ""
        )
        self.finish(self.page("error.html", status=status, code=error.code.code, reason=error.reason, again=again))


REFUSALS = (400, 404, 409, 429, 502, 503, 504)
"""With which a form is shown again, with what is wrong and what was typed."""


class ChangeForm(Struct, frozen=True, kw_only=True):
    """A form that changes something."""

    csrf: str = ""


class PageHandler(WebHandler, RestHandler):
    """A page for whoever is signed in; a token in the Authorization header opens it as well."""

    _secret: str | None = None
    _gone = False

    async def prepare(self) -> None:
        await super().prepare()
        if len(self.request.uri or "") > LONGEST_ADDRESS:
            raise ApiError(
                URL_TOO_LONG, f"the address is longer than {LONGEST_ADDRESS} characters: ask with fewer filters"
            )

    def on_connection_close(self) -> None:
        self._gone = True
        super().on_connection_close()

    async def parts(self, *asked: Coroutine[Any, Any, Any]) -> list[Part[Any]]:
        """Parts of this page, few at a time; what nobody waits for any more is not begun."""
        places = asyncio.Semaphore(PARTS_AT_ONCE)

        async def one(question: Coroutine[Any, Any, Any]) -> Part[Any]:
            async with places:
                if self._gone:
                    question.close()
                    return Part(None, "nobody waits for it")
                return await part(question)

        return list(await asyncio.gather(*map(one, asked)))

    async def attempt(self, asked: Awaitable[T]) -> Part[T]:
        """What a form asks for, or why it is refused; the answer has the refusal's status."""
        done = await part(asked)
        if done.refused:
            self.set_status(done.status)
        return done

    async def identified(self) -> Identity:
        if "Authorization" in self.request.headers:
            return await super().identified()
        secret = self.session_secret
        identity = await self.gate.session(secret) if secret is not None else None
        if identity is None:
            raise ApiError(UNAUTHORIZED)
        self._secret = secret
        return identity

    def refuse_forged(self, csrf: str) -> None:
        """Raises: ApiError: a form that changes something was not made by our own page for this session."""
        self.refuse_other_sites()
        if self._secret is not None and not hmac.compare_digest(csrf.encode(), csrf_token(self._secret).encode()):
            raise ApiError(FORBIDDEN, "this form is of another session: open the page again")

    async def rendered(self, template: str, **values: Any) -> bytes:
        """``page`` beside the loop, for what may have many rows."""
        return await asyncio.to_thread(self.page, template, **values)

    def in_two(self, page: bytes, mark: bytes, later: Callable[[], Awaitable[bytes]]) -> Streamed:
        """A page that is sent up to a mark, and on from there with what takes longer in the mark's place."""
        first, _, last = page.partition(mark)

        async def chunks() -> AsyncGenerator[bytes, None]:
            yield first
            yield await later() + last

        return Streamed(content_type=HTML, chunks=chunks(), seconds=PAGE_SECONDS, packable=True)

    def may(self, organization_id: str, needs: Needs) -> bool:
        """Whether who is signed in may do something; what nobody may is not offered."""
        return self.gate.may(self.identity, organization_id, needs)

    def page(self, template: str, **values: Any) -> bytes:
        self.set_header("Content-Type", HTML)
        identity: Identity | None = getattr(self, "identity", None)
        csrf = csrf_token(self._secret) if self._secret is not None else ""
        return render(template, signed_in=identity.user_name if identity else None, csrf=csrf, **values)


class NoPage(WebHandler, NotFoundHandler):
    """What no route is for: a page for a browser, and the error's JSON for everybody else."""
