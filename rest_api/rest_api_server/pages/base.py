"""What every page shares: who is signed in, the rules that a browser is told, errors as pages."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from http.client import responses
from typing import Any
from urllib.parse import quote, urlsplit

from rest_api.rest_api_server.auth import RestHandler
from rest_api.rest_api_server.directory.model import Identity
from rest_api.rest_api_server.errors import FORBIDDEN, UNAUTHORIZED
from rest_api.rest_api_server.pages.render import render
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError

HTML = "text/html; charset=utf-8"
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SESSION = "metroculus_session"
SECURE_SESSION = f"__Host-{SESSION}"
"""With this beginning a browser takes the cookie over TLS alone, and from this host alone."""
SIGN_IN = "/sign-in"
LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]+)?", re.IGNORECASE)
LONGEST_SECRET = 512


def is_html_wanted(accepted: str) -> bool:
    """Whether who asks is a browser that shows a page."""
    return "text/html" in accepted


def safe_target(text: str) -> str:
    """Where to go after signing in: a path of ours, whatever is asked for."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    own = not parts.scheme and not parts.netloc and re.fullmatch(r"/([^/\\\x00-\x20][^\\\x00-\x20]*)?", text, re.ASCII)
    return text if own else "/"


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
        return LOOPBACK.fullmatch(self.request.host) is not None

    def page(self, template: str, **values: Any) -> bytes:
        """A page's bytes, to be sent."""
        self.set_header("Content-Type", HTML)
        return render(template, signed_in=None, csrf="", **values)

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
        if error.code == UNAUTHORIZED and self.request.method == "GET":
            self.go(f"{SIGN_IN}?next={quote(self.request.uri or '/', safe='')}")
            return
        status = error.code.status
        self.set_status(status, responses.get(status))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        self.finish(self.page("error.html", status=status, code=error.code.code, reason=error.reason))


class PageHandler(WebHandler, RestHandler):
    """A page for whoever is signed in; a token in the Authorization header opens it as well."""

    _secret: str | None = None

    async def identified(self) -> Identity:
        if "Authorization" in self.request.headers:
            return await super().identified()
        secret = self.session_secret
        identity = await self.gate.session(secret) if secret is not None else None
        if identity is None:
            raise ApiError(UNAUTHORIZED)
        self._secret = secret
        return identity

    @property
    def session_secret(self) -> str | None:
        """What the browser's cookie says."""
        for name in (SECURE_SESSION, SESSION):
            cookie = self.request.cookies.get(name)
            if cookie is not None and 0 < len(cookie.value) <= LONGEST_SECRET:
                return str(cookie.value)
        return None

    def refuse_forged(self, csrf: str) -> None:
        """Raises: ApiError: a form that changes something was not made by our own page for this session."""
        self.refuse_other_sites()
        if self._secret is not None and not hmac.compare_digest(csrf.encode(), csrf_token(self._secret).encode()):
            raise ApiError(FORBIDDEN, "this form is of another session: open the page again")

    def page(self, template: str, **values: Any) -> bytes:
        self.set_header("Content-Type", HTML)
        identity: Identity | None = getattr(self, "identity", None)
        csrf = csrf_token(self._secret) if self._secret is not None else ""
        return render(template, signed_in=identity.user_name if identity else None, csrf=csrf, **values)
