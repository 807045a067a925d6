"""Whose push token is shown: Metroculus is asked, and remembered for as long as it cannot be."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct
from tornado.httputil import HTTPHeaders

from diproxy.diproxy_server.calls import Calls
from diproxy.diproxy_server.errors import NO_METROCULUS, RETRY_SECONDS, UNAUTHORIZED
from optscale_client.metroculus_client import MetroculusError
from tools.tornado_service.errors import ApiError

GOOD_SECONDS = 60.0
"""How long a good token is taken without asking: a revoked one is refused after this."""
BAD_SECONDS = 5.0
"""How long a bad token is refused without asking."""
AWAY_SECONDS = 15 * 60.0
"""How long a good token is taken while Metroculus cannot be asked."""
ASK_AGAIN_SECONDS = 2.0
"""Between two questions about one token while Metroculus cannot be asked."""
PATIENCE_SECONDS = 1.0
"""How long a request with a token that was good waits for an answer of Metroculus."""
TOKEN = re.compile(r"mpt_[0-9a-f]{32}_[A-Za-z0-9_-]{43}")
MOST_TOKENS = 10_000
MOST_TOKEN_BYTES = 1024


class _Known(Struct):
    account: str | None
    said_at: float
    tried_at: float


class TokenGate:
    """Remembers what Metroculus said of tokens, by their digests.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, calls: Calls, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls = calls
        self._clock = clock
        self._good: OrderedDict[bytes, _Known] = OrderedDict()
        self._bad: OrderedDict[bytes, _Known] = OrderedDict()
        """Apart, so that no flood of bad ones takes the place of a good one."""
        self._asking: dict[bytes, asyncio.Future[_Known | None]] = {}

    async def account_of(self, token: str, request_id: str) -> str:
        """The account that a token is of.

        Raises:
            ApiError: 401: it is nobody's; 503: Metroculus cannot be asked, and it is not known well enough.
        """
        if not TOKEN.fullmatch(token):
            raise ApiError(UNAUTHORIZED)
        digest = hashlib.sha256(token.encode()).digest()
        known, now = self._good.get(digest) or self._bad.get(digest), self._clock()
        if known is None or not self._fresh(known, now):
            asking = self._asked(digest, token, request_id)
            good = known is not None and known.account is not None and now - known.said_at <= AWAY_SECONDS
            known = await _within(PATIENCE_SECONDS if good else None, asking) or known
        if known is None or (known.account is not None and self._clock() - known.said_at > AWAY_SECONDS):
            raise ApiError(NO_METROCULUS, retry_after=RETRY_SECONDS)
        if known.account is None:
            raise ApiError(UNAUTHORIZED)
        return known.account

    def knows(self, token: str) -> bool:
        """Whether this token was good when Metroculus was asked last."""
        return hashlib.sha256(token.encode()).digest() in self._good

    @staticmethod
    def _fresh(known: _Known, now: float) -> bool:
        good_for = BAD_SECONDS if known.account is None else GOOD_SECONDS
        return now - known.said_at < good_for or now - known.tried_at < ASK_AGAIN_SECONDS

    def _asked(self, digest: bytes, token: str, request_id: str) -> asyncio.Future[_Known | None]:
        """What Metroculus says; None where it cannot be asked. Who shows the same token waits for one answer."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.ensure_future(self._ask(digest, token, request_id))
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        return asking

    async def _ask(self, digest: bytes, token: str, request_id: str) -> _Known | None:
        try:
            said = await self._calls.check(token, request_id)
        except MetroculusError:
            known = self._good.get(digest)
            if known is not None:
                known.tried_at = self._clock()
            return None
        now = self._clock()
        known = _Known(said.cloud_account_id, now, now)
        kept, other = (self._bad, self._good) if known.account is None else (self._good, self._bad)
        other.pop(digest, None)
        kept[digest] = known
        kept.move_to_end(digest)
        while len(kept) > MOST_TOKENS:
            kept.popitem(last=False)
        return known


async def _within(seconds: float | None, asked: asyncio.Future[_Known | None]) -> _Known | None:
    """What is said in time; the question goes on, for whoever comes next."""
    done, _ = await asyncio.wait({asked}, timeout=seconds)
    return asked.result() if done else None


def token_of(headers: HTTPHeaders) -> str:
    """The push token of a request: a bearer token, or the password of basic credentials.

    Raises:
        ApiError
    """
    given = headers.get_list("Authorization")
    shown = _shown(*given[0].partition(" ")[::2]) if len(given) == 1 else None
    if not shown or len(shown) > MOST_TOKEN_BYTES or not shown.isascii() or not shown.isprintable():
        raise ApiError(UNAUTHORIZED)
    return shown


def _shown(scheme: str, value: str) -> str | None:
    """The token in one ``Authorization``; None where it holds none."""
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return None
