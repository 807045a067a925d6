"""Signing in and out: a token is exchanged for a session, which lives in the directory."""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct

from rest_api.rest_api_server.auth import Gate, Needs, actor_of
from rest_api.rest_api_server.directory.model import Identity
from rest_api.rest_api_server.pages.base import (
    LONGEST_ADDRESS,
    SECURE_SESSION,
    SESSION,
    SIGN_IN,
    ChangeForm,
    PageHandler,
    WebHandler,
    safe_target,
)
from tools.tornado_service.application import OpenHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import NoQuery, operation
from tools.tornado_service.params import Text

SESSION_SECONDS = 12 * 3600
NEEDS_TLS = "Signing in needs HTTPS: over plain HTTP others on the way could read the token."
REFUSED = "This token is not known, has expired or was revoked."
USED_LINK = "This link has been used, or is older than ten minutes."


class Audited(Enum):
    """Under which name the audit log tells of what needs no permission."""

    SIGN_IN = "sign in"


class TargetText(Text):
    """Where to go after signing in, whatever it says."""

    pattern = r"[\s\S]*"
    what = "a path"
    longest = 3 * LONGEST_ADDRESS


class SignInQuery(Struct, frozen=True, kw_only=True):
    next: TargetText = TargetText("/")
    code: str | None = None


class SignInForm(Struct, frozen=True, kw_only=True):
    token: str = ""
    code: str = ""
    next: TargetText = TargetText("/")


class SignIn(WebHandler, OpenHandler):
    """Signs a browser in: by a token, or by a link with a code that is good once."""

    gate: Gate
    identity: Identity | None = None
    tried = False

    @property
    def actor(self) -> dict[str, str]:
        return actor_of(self.identity) if self.identity is not None else super().actor

    @property
    def audited_as(self) -> Any:
        return Audited.SIGN_IN if self.tried else None

    @operation(needs=None, query=SignInQuery, answer=str, content="text/html", also=(303, 401, 403))
    async def get(self, query: SignInQuery) -> bytes | None:
        if query.code is None or self.request.method == "HEAD" or not self.usable:
            return self.form(query.next)
        other = await self.gate.session(self.session_secret) if self.session_secret is not None else None
        if other is not None or not self.is_visited:
            return self.page(
                "confirm.html", target=safe_target(query.next), code=query.code, other=other.user_name if other else ""
            )
        return await self.by_code(query.code, query.next)

    @operation(needs=None, form=SignInForm, answer=str, content="text/html", also=(303, 401, 403, 429))
    async def post(self, query: NoQuery, form: SignInForm) -> bytes | None:
        self.refuse_other_sites()
        if not self.usable:
            self.set_status(403)
            return self.form(form.next)
        if form.code:
            return await self.by_code(form.code, form.next)
        self.tried = True
        self.tell_audit(by="token")
        try:
            identity = await self.gate.identity([f"Bearer {form.token.strip()}"], self.address)
        except ApiError as refused:
            if refused.code.status not in (401, 429):
                raise
            self.set_status(refused.code.status)
            late = refused.code.status == 429
            return self.form(form.next, refused.reason if late else REFUSED)
        return await self.signed_in(identity, form.next)

    async def by_code(self, code: str, target: str) -> bytes | None:
        self.tried = True
        self.tell_audit(by="code")
        identity = await self.gate.use_code(code)
        if identity is None:
            self.set_status(401)
            return self.form(target, USED_LINK)
        return await self.signed_in(identity, target)

    @property
    def usable(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        return self.over_tls or self.on_loopback

    @property
    def is_visited(self) -> bool:
        """Whether a person has opened this address by themselves, and no other site or program has for them."""
        asked = self.request.headers
        return (
            asked.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
            and asked.get("Sec-Fetch-Dest", "document") == "document"
            and "Sec-Purpose" not in asked
            and "Purpose" not in asked
        )

    def form(self, target: str, problem: str = "") -> bytes:
        problem = problem or ("" if self.usable else NEEDS_TLS)
        return self.page("sign_in.html", target=safe_target(target), problem=problem, usable=self.usable)

    async def signed_in(self, identity: Identity, target: str) -> bytes | None:
        """A new session, whatever the browser had before."""
        self.identity = identity
        expires_at = int(self.service.clock()) + SESSION_SECONDS
        secret = await self.gate.new_session(identity, expires_at)
        self.forget_cookies()
        attributes: dict[str, Any] = {"path": "/", "httponly": True, "samesite": "Lax", "max_age": SESSION_SECONDS}
        self.set_cookie(SECURE_SESSION if self.over_tls else SESSION, secret, secure=self.over_tls, **attributes)
        self.go(safe_target(target))
        return None


class SignOut(PageHandler):
    """Ends the session."""

    takes_place = False

    @operation(needs=Needs.READ_COSTS, form=ChangeForm, answer=str, content="text/html", also=(303,))
    async def post(self, query: NoQuery, form: ChangeForm) -> None:
        self.refuse_forged(form.csrf)
        self.forget_cookies()  # first: the browser forgets also where the directory cannot be asked
        if self.session_secret is not None:
            await self.gate.end_session(self.session_secret)
        self.go(SIGN_IN)
