"""What tenants push: the tokens that they show, what is wanted of them, and the inbox that takes it."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Container, Sequence, Set
from uuid import UUID

from metroculus import plan
from metroculus.codes import INBOX_FULL, INVALID, NOT_PUSHED, ONE_CLUSTER, OTHER_CLUSTER, TOO_LARGE, TOO_MANY_TOKENS
from metroculus.metroculus_api.errors import history_of
from metroculus.sources.accounts import PUSH, Accounts, TooManyTokens
from metroculus.sources.errors import BadAnswer, TooLarge
from metroculus.storage.inbox import PIECE_BYTES, Inbox, Kind, PushedAnswer, Step
from metroculus.storage.ledger import Marker
from metroculus.storage.store import Store
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError
from tools.window import DAY, HOUR, MINUTE

log = logging.getLogger("push")

OLD_TOKEN_SECONDS = 15 * MINUTE
"""How long a replaced token stays good."""
TOKEN_BYTES = 32
_TOKEN = re.compile(r"mpt_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")
OLDEST_SECONDS = 400 * DAY
MOST_INBOX_BYTES = 4 << 30
"""Packed answers that are kept of one account."""
RETRY_SECONDS = 60
FILLING = ("queued", "running", "incomplete")
"""States of back-fills whose hours are wanted, as long as they lack."""


class PushController:
    """The tenants' door to history.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._kept = store
        self._clock = clock

    @property
    def _store(self) -> Store:
        return history_of(self._kept)

    @property
    def _inbox(self) -> Inbox:
        return self._store.inbox

    async def new_token(self, account: str) -> structs.PushToken:
        """A token of an account that pushes; it is shown once, and only its digest is kept.

        Raises:
            ApiError, RegistryError
        """
        if self._accounts.one_cluster:
            raise ApiError(ONE_CLUSTER)
        token = f"mpt_{UUID(account).hex}_{secrets.token_urlsafe(TOKEN_BYTES)}"
        try:
            added = await self._accounts.registry.add_push_token(account, _digest(token), OLD_TOKEN_SECONDS, PUSH)
        except TooManyTokens:
            raise ApiError(TOO_MANY_TOKENS, retry_after=OLD_TOKEN_SECONDS) from None
        if not added:
            raise ApiError(NOT_PUSHED)
        return structs.PushToken(account, token)

    async def check(self, token: str) -> structs.CheckedPushToken:
        """Whose token this is.

        Raises:
            RegistryError
        """
        said = _TOKEN.fullmatch(token)
        if said is None:
            return structs.CheckedPushToken(None)
        account = str(UUID(said[1]))
        # What is remembered of an entry says nothing of tokens that were made or revoked since: better no answer.
        entry = await self._accounts.registry.read_now(account)
        if entry is None or entry.flavour != PUSH:
            return structs.CheckedPushToken(None)
        digest, now = _digest(token), self._clock()
        good = [
            hmac.compare_digest(one.digest, digest) and (one.until is None or now < one.until)
            for one in entry.credentials.push_tokens
        ]
        return structs.CheckedPushToken(account if any(good) else None)

    async def wanted(self, account: str) -> structs.Wanted:
        """What an account's agent is to ask its upstream for now.

        Raises:
            ApiError, StoreError, RegistryError
        """
        await self._require_push(account)
        now, store = int(self._clock()), self._store
        jobs = await store.run(store.jobs.of, account)
        spans = [(job.first, job.last) for job in jobs if not job.repair and job.state in FILLING]
        first = min([plan.day_of(now - plan.CLOSED_AFTER_SECONDS, 0), *(start for start, _ in spans)])
        answers = await store.run(self._inbox.overlapping, account, first, now)
        waiting = {one.answer for one in await store.run(self._inbox.waiting, account)}
        stored: dict[int, Marker] = dict((await store.run(store.ledger.committed, account, first, now)).hours)
        told, tried = _hours_of(answers, waiting, stored)
        found = plan.wanted(now, told, tried, spans, stored)
        return structs.Wanted(
            account,
            tuple(
                structs.WantedAnswer(
                    kind=one.kind, start=one.start, end=one.end, step=one.step, aggregate=one.aggregate, asked_at=now
                )
                for one in found
            ),
        )

    async def put(
        self,
        account: str,
        question: tuple[Kind, Step, int, int],
        body: bytes,
        encoding: str,
        digest: str | None,
        asked_at: int | None,
        currency: str = "",
    ) -> structs.PushReceipt:
        """Keep an answer; it is durable when this returns.

        Raises:
            ApiError: 400 and 413 say what is wrong with it.
            StoreError, RegistryError
        """
        await self._require_push(account)
        kind, step, first, last = question
        now, store = int(self._clock()), self._store
        self._require_time(step, first, last, now)
        packed = _packed(body, encoding)
        if digest is not None and not _agrees(digest, body):
            raise ApiError(INVALID, "Digest: is not that of the body", ["Digest"])
        try:
            content = await self._accounts.read_pushed(kind, step, first, last, packed)
        except (TooLarge, BadAnswer) as problem:
            raise _refusal(problem) from None
        await self._require_cluster(account, content.clusters, now)
        answer = PushedAnswer(
            account=account,
            kind=kind,
            step=step,
            first=first,
            last=last,
            answer=store.ledger.new_batch(),
            asked_at=now if asked_at is None else min(now, asked_at),
            received_at=now,
            digest=content.digest,
            pieces=-(-len(packed) // PIECE_BYTES),
            bytes=len(packed),
            form=content.form,
            told=content.told,
            currency=currency,
            clusters=content.clusters,
        )
        newest = await store.run(self._inbox.newest, account, kind, step, first, last)
        # One that tells less than this does not replace it, however late it was asked for.
        if newest is not None and newest.asked_at > answer.asked_at and set(newest.told) >= set(content.told):
            return structs.PushReceipt("superseded", len(content.told))
        same = newest is not None and (newest.digest, newest.told) == (answer.digest, answer.told)
        same = same and newest is not None and (not currency or newest.currency == currency)
        if newest is not None and same and await store.run(self._inbox.whole, newest):
            await store.run(self._inbox.ask_again, newest, answer.asked_at, now)
            return structs.PushReceipt("known", len(content.told))
        if await store.run(self._inbox.size, account) + len(packed) > MOST_INBOX_BYTES:
            log.error("account %s: the inbox is full", account)
            raise ApiError(INBOX_FULL, retry_after=RETRY_SECONDS)
        await store.run(self._inbox.put, answer, packed)
        self._accounts.note_pushed(account)
        return structs.PushReceipt("kept", len(content.told))

    async def _require_push(self, account: str) -> None:
        if self._accounts.one_cluster:
            raise ApiError(ONE_CLUSTER)
        if not await self._accounts.pushes(account):
            raise ApiError(NOT_PUSHED)

    async def _require_cluster(self, account: str, clusters: Sequence[str], now: int) -> None:
        """Raises: ApiError: another cluster's answers were taken in the last day, and the account names none."""
        entry = await self._accounts.registry.get(account)
        if not clusters or (entry is not None and entry.credentials.clusters):
            return
        before = await self._store.run(self._inbox.clusters, account, now - DAY)
        if before and not set(before) & set(clusters):
            reason = f"this cluster's answers were of {', '.join(before)}, and this one is of {', '.join(clusters)}"
            log.error("account %s: two clusters push with one token: %s", account, reason)
            raise ApiError(OTHER_CLUSTER, f"{reason}: link each cluster by itself, or name the one that is meant")

    @staticmethod
    def _require_time(step: Step, first: int, last: int, now: int) -> None:
        """Raises: ApiError: hours that are not over, too old, or no whole hours of one day."""
        if first % HOUR or last % HOUR or not 0 < last - first <= DAY or first // DAY != (last - 1) // DAY:
            raise ApiError(INVALID, "start and end must be whole hours of one UTC day", ["start", "end"])
        if step == "day" and last - first != DAY:
            raise ApiError(INVALID, "a day is from midnight to midnight UTC", ["start", "end"])
        if last > now:
            raise ApiError(INVALID, "end: these hours are not over by our clock", ["end"])
        if first < now - OLDEST_SECONDS:
            raise ApiError(INVALID, f"start: hours of more than {OLDEST_SECONDS // DAY} days ago", ["start"])


def _hours_of(
    answers: Sequence[PushedAnswer], waiting: Set[int], stored: Container[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """When each hour that was told was asked for last, and each that was asked for in vain.

    What was told and taken, and is not stored, was in vain: something that it takes was lacking.

    Args:
        waiting: the answers that nobody has taken yet.
        stored: committed hours.
    """
    told: set[int] = set()
    tried: dict[int, int] = {}
    for one in answers:
        if not one.tells_hours:
            continue
        for hour in range(one.first, one.last, HOUR):
            tried[hour] = max(tried.get(hour, 0), one.asked_at)
        told.update(hour for hour in one.told if one.answer in waiting or hour in stored)
    # An hour that was told once is known, whatever later answers lack: they say when it was asked for last.
    known = {hour: tried[hour] for hour in told if hour in tried}
    return known, {hour: at for hour, at in tried.items() if hour not in told}


def _refusal(problem: TooLarge | BadAnswer) -> ApiError:
    if isinstance(problem, TooLarge):
        return ApiError(TOO_LARGE, str(problem), ["body"])
    return ApiError(INVALID, f"body: {problem}", ["body"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(body: bytes, encoding: str) -> bytes:
    """The body as gzip."""
    if encoding == "gzip":
        return body
    if encoding in ("identity", ""):
        return gzip.compress(body, 6, mtime=0)
    raise ApiError(INVALID, "Content-Encoding: must be gzip or identity", ["Content-Encoding"])


def _agrees(digest: str, body: bytes) -> bool:
    """Whether one of the digests of a ``Digest`` header is of this body."""
    for part in digest.split(","):
        algorithm, _, value = part.strip().partition("=")
        if algorithm.lower() == "sha-256":
            try:
                return hmac.compare_digest(base64.b64decode(value, validate=True), hashlib.sha256(body).digest())
            except (ValueError, binascii.Error):
                return False
    return True
