"""What Metroculus' handlers share: the cluster secret, the window, the deadline."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Hashable
from enum import Enum
from typing import Any

from metroculus.codes import CODES, NO_SECRET, NO_SECRET_YET, TOO_MANY, WRONG_SECRET
from metroculus.cost_model.allocation import Filters
from metroculus.metroculus_api.cache import AnswerCache, Answered, Key, Sourced, Work
from metroculus.metroculus_api.handlers.v2.properties import PropertyFilter, filters_of
from metroculus.metroculus_api.secret import SecretKeeper
from optscale_client.metroculus_client.structs import ACCOUNTS_AT_ONCE
from tools.deadline import Deadline
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.negotiation import takes_gzip
from tools.tornado_service.operation import Operation
from tools.tornado_service.params import FilterText, RowFilter, Uuid, WindowQuery, resolve_window
from tools.tornado_service.ready import KnownRequest, ReadyAnswer
from tools.tornado_service.slowdown import Slowdown
from tools.window import Window

Question = tuple[Hashable, ...]
KNOWN = {"kind": "cluster secret"}
"""Who asks with the cluster secret, as the audit log tells it."""


class Needs(Enum):
    """What a caller must have."""

    CLUSTER_SECRET = "cluster secret"  # nosec B105  (the permission's name)


class MetroculusHandler(ServiceHandler):
    """Refuses whoever does not know the cluster secret, before anything is read."""

    secret: SecretKeeper
    slowdown: Slowdown
    deadline_seconds: float
    _known = False
    _deadline: Deadline | None = None

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        offered = self.request.headers.get_list("Secret")
        if not self.secret.known:
            raise ApiError(NO_SECRET_YET, retry_after=5)
        if not offered:
            raise ApiError(NO_SECRET)
        if await self._accepted(offered):
            self._known = True
            return
        key = f"address {self.address}"
        slowed = ApiError(TOO_MANY, "too many wrong secrets; come again later", retry_after=self.slowdown.retry_after)
        if self.slowdown.crowded(key) or await self.slowdown.failed(key):
            raise slowed
        raise ApiError(WRONG_SECRET)

    async def _accepted(self, offered: list[str]) -> bool:
        if len(offered) != 1:
            return False
        secret = offered[0].encode("latin-1", "replace")
        if self.secret.accepts(secret):
            return True
        await self.secret.catch_up()
        return self.secret.accepts(secret)

    @property
    def actor(self) -> dict[str, str]:
        return KNOWN if self._known else {"kind": "anonymous"}

    def deadline(self) -> Deadline:
        """Our own, or what is left of the caller's where that is less."""
        asked = self.request.headers.get("X-Request-Timeout", "")
        seconds = float(asked) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", asked) else self.deadline_seconds
        self._deadline = Deadline(min(seconds, self.deadline_seconds), self.request_id)
        return self._deadline

    def on_connection_close(self) -> None:
        if self._deadline is not None:
            self._deadline.expire()
        super().on_connection_close()

    def on_finish(self) -> None:
        if self._deadline is not None:
            self._deadline.expire()
        super().on_finish()

    def window_of(self, query: WindowQuery) -> Window:
        return resolve_window(query, self.service.clock(), CODES)


class AccountId(Uuid):
    """One of the accounts of an organization, which may have many."""

    most = ACCOUNTS_AT_ONCE


class AccountsQuery(WindowQuery, frozen=True, kw_only=True):
    """Several accounts in one window, and what of them."""

    cloud_account_id: tuple[AccountId, ...]
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()
    filter: tuple[PropertyFilter, ...] = ()

    @property
    def filters(self) -> Filters:
        return filters_of(self.k8s_namespace, self.k8s_node, self.k8s_service, self.filter)


class KeptHandler(MetroculusHandler):
    """Answers that may be kept; how one was come by stands in its headers."""

    cache: AnswerCache

    @classmethod
    def question(cls, query: Any, now: float) -> Question:
        """What is asked at a moment, all of it.

        It is what the controller is asked and what the answer is kept under, so that nothing that tells two questions
        apart can be left out.

        Raises:
            ApiError
        """
        raise NotImplementedError

    @classmethod
    def key(cls, question: Question) -> Key:
        """What the answer to a question is kept under, beside its account."""
        return (cls.__name__, *question)

    async def kept(self, query: Any, ask: Callable[..., Awaitable[Sourced]]) -> Answered:
        """The answer to a query about an account: ``ask(*question, deadline)``."""
        handler, clock = type(self), self.service.clock

        def anew(ahead: float) -> tuple[Key, Work]:
            question = handler.question(query, clock() + ahead)
            return handler.key(question), lambda deadline: ask(*question, deadline)

        # What is kept is packed for whoever asks next.
        packs = self.cache.keeps or takes_gzip(self.request.headers)
        return await self.cache.answer(query.cloud_account_id, *anew(0.0), self.deadline(), anew, packs)

    @classmethod
    def ready(cls, asked: KnownRequest) -> ReadyAnswer | None:
        target, parts = asked.target, asked.target.parts
        offered = asked.headers.get_list("Secret")
        if len(offered) != 1 or not parts["secret"].accepts(offered[0].encode("latin-1", "replace")):
            return None
        try:
            question = cls.question(target.query, asked.service.clock())
        except ApiError:
            return None
        cache: AnswerCache = parts["cache"]
        found = cache.hit(target.query.cloud_account_id, cls.key(question))
        return None if found is None else ReadyAnswer(found.prepared, KNOWN, _told_of(found))

    async def send(self, value: Any) -> None:
        for name, text in _told_of(value):
            self._headers[name] = text
        await super().send(value.prepared)


def _told_of(answer: Answered) -> tuple[tuple[str, str], ...]:
    """How an answer was come by, and how long it may be kept by who asked: what is left of its freshness."""
    return (
        ("X-Cache", answer.state),
        ("Age", str(answer.age)),
        ("Cache-Control", f"private, max-age={answer.fresh_for}"),
    )
