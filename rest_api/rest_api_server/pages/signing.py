"""Signing in and out: a token is exchanged for a session, which lives in the directory."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from rest_api.rest_api_server.auth import Gate, Needs
from rest_api.rest_api_server.directory.model import Identity
from rest_api.rest_api_server.pages.base import (
    SECURE_SESSION,
    SESSION,
    SIGN_IN,
    PageHandler,
    WebHandler,
    safe_target,
)
from tools.tornado_service.application import OpenHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import NoQuery, operation

SESSION_SECONDS = 12 * 3600
NEEDS_TLS = "Signing in needs HTTPS: over plain HTTP others on the way could read the token."
REFUSED = "This token is not known, has expired or was revoked."
USED_LINK = "This link has been used, or is older than ten minutes."


class SignInQuery(Struct, frozen=True, kw_only=True):
    next: str = "/"
    code: str | None = None


class SignInForm(Struct, frozen=True, kw_only=True):
    token: str
    next: str = "/"


class SignIn(WebHandler, OpenHandler):
    """Signs a browser in: by a token, or by a link with a code that is good once."""

    gate: Gate

    @operation(needs=None, query=SignInQuery, answer=str, content="text/html", also=(303, 401, 403))
    async def get(self, query: SignInQuery) -> bytes | None:
        if query.code is None or self.request.method == "HEAD":
            return self.form(query.next)
        identity = await self.gate.use_code(query.code)
        if identity is None:
            self.set_status(401)
            return self.form(query.next, USED_LINK)
        return await self.signed_in(identity, query.next)

    @operation(needs=None, form=SignInForm, answer=str, content="text/html", also=(303, 401, 403, 429))
    async def post(self, query: NoQuery, form: SignInForm) -> bytes | None:
        self.refuse_other_sites()
        try:
            identity = await self.gate.identity([f"Bearer {form.token.strip()}"], self.address)
        except ApiError as refused:
            if refused.code.status not in (401, 429):
                raise
            self.set_status(refused.code.status)
            late = refused.code.status == 429
            return self.form(form.next, refused.reason if late else REFUSED)
        return await self.signed_in(identity, form.next)

    def form(self, target: str, problem: str = "") -> bytes:
        usable = self.over_tls or self.on_loopback
        return self.page("sign_in.html", target=safe_target(target), problem=problem or ("" if usable else NEEDS_TLS))

    async def signed_in(self, identity: Identity, target: str) -> bytes | None:
        """A new session, whatever the browser had before."""
        if not self.over_tls and not self.on_loopback:
            self.set_status(403)
            return self.form(target, NEEDS_TLS)
        expires_at = int(self.service.clock()) + SESSION_SECONDS
        secret = await self.gate.new_session(identity, expires_at)
        attributes: dict[str, Any] = {"path": "/", "httponly": True, "samesite": "Lax", "max_age": SESSION_SECONDS}
        self.clear_cookie(SESSION if self.over_tls else SECURE_SESSION)
        self.set_cookie(SECURE_SESSION if self.over_tls else SESSION, secret, secure=self.over_tls, **attributes)
        self.go(safe_target(target))
        return None


class SignOutForm(Struct, frozen=True, kw_only=True):
    csrf: str = ""


class SignOut(PageHandler):
    """Ends the session."""

    @operation(needs=Needs.READ_COSTS, form=SignOutForm, answer=str, content="text/html", also=(303,))
    async def post(self, query: NoQuery, form: SignOutForm) -> None:
        self.refuse_forged(form.csrf)
        if self.session_secret is not None:
            await self.gate.end_session(self.session_secret)
        for name in (SESSION, SECURE_SESSION):
            self.clear_cookie(name)
        self.go(SIGN_IN)
