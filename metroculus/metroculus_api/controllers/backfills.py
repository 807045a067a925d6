"""Back-fills and repairs: written down here, done by whoever works on the store."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from metroculus.codes import INVALID, NOT_FOUND
from metroculus.metroculus_api.errors import NoWorker, history_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import NoSource
from metroculus.storage.jobs import DEFAULT_PARALLEL, MAX_PARALLEL, Backfill
from metroculus.storage.store import Store
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.tornado_service.params import Uuid
from tools.window import HOUR, MAX_SPAN_SECONDS, WindowError, iso, parse_rfc3339, parse_stamps


class BackfillBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to fill: Unix seconds or RFC 3339, UTC. With ``repair``, the reason, closed hours are read again."""

    cloud_account_id: str
    start_date: int | str
    end_date: int | str
    parallel: int = DEFAULT_PARALLEL
    repair: str | None = None


class BackfillsController:
    def __init__(self, accounts: Accounts, store: Store | None, worked: bool, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._worked = worked
        self._clock = clock

    async def create(self, body: BackfillBody, deadline: Deadline) -> structs.Backfill:
        """Ask for one.

        Raises:
            ApiError, NoHistory, NoWorker, NoSource, StoreError
        """
        store = history_of(self._store)
        if not self._worked:
            raise NoWorker
        try:
            account = Uuid.parse(body.cloud_account_id)
        except ValueError as problem:
            raise ApiError(INVALID, f"cloud_account_id {problem}", ["cloud_account_id"]) from None
        if not 1 <= body.parallel <= MAX_PARALLEL:
            raise ApiError(INVALID, f"parallel must be 1 to {MAX_PARALLEL}", ["parallel"])
        if body.repair is not None and not body.repair.strip():
            raise ApiError(INVALID, "repair must say why", ["repair"])
        first, last = stretch_of(body.start_date, body.end_date, self._clock())
        sources = await self._accounts.of(account)
        if not sources.any:
            raise NoSource
        if body.repair is not None and not self._accounts.one_cluster and await self._accounts.pushes(account):
            reason = "the costs of this account are pushed: what was pushed of closed days is not kept for ever"
            raise ApiError(INVALID, f"repair: {reason}", ["repair"])
        job = await store.ask(deadline.left(), store.jobs.ask, account, first, last, body.parallel, body.repair)
        return _shown(job)

    async def get(self, id: str, deadline: Deadline) -> structs.Backfill:
        """One that was asked for.

        Raises:
            ApiError: 404
        """
        return _shown((await self._found(id, deadline))[1])

    async def listed(self, account: str, deadline: Deadline) -> structs.Backfills:
        """Those of an account that are kept, the newest first.

        Raises:
            NoHistory, StoreError
        """
        store = history_of(self._store)
        jobs = await store.ask(deadline.left(), store.jobs.of, account)
        return structs.Backfills(cloud_account_id=account, backfills=tuple(_shown(job) for job in reversed(jobs)))

    async def cancel(self, id: str, deadline: Deadline) -> structs.Backfill:
        """End one; what it has stored stays. One that is at its end stays as it is.

        Raises:
            ApiError: 404
        """
        store, job = await self._found(id, deadline)
        return _shown(await store.ask(deadline.left(), store.jobs.cancel, job))

    async def _found(self, id: str, deadline: Deadline) -> tuple[Store, Backfill]:
        store = history_of(self._store)
        job = await store.ask(deadline.left(), store.jobs.get, id)
        if job is None:
            raise ApiError(NOT_FOUND)
        return store, job


def stretch_of(start: int | str, end: int | str, now: float) -> tuple[int, int]:
    """Whole hours of a request.

    Raises:
        ApiError
    """
    stamps = [str(one) for one in (start, end)]
    moments = [parse_rfc3339(text) for text in stamps]
    try:
        since, until = (text if at is None else str(at) for text, at in zip(stamps, moments, strict=True))
        read = parse_stamps(since, until, "start_date", "end_date")
    except WindowError as problem:
        raise ApiError(INVALID, f"{problem.reason}, or RFC 3339 with Z", problem.params) from None
    first, last = read[0] - read[0] % HOUR, min(read[1] + -read[1] % HOUR, int(now) - int(now) % HOUR)
    if first >= last:
        raise ApiError(INVALID, "the start must be before the end, and in the past", ["start_date", "end_date"])
    if last - first > MAX_SPAN_SECONDS:
        raise ApiError(INVALID, "a back-fill is at most 400 days long", ["start_date", "end_date"])
    return first, last


def _shown(job: Backfill) -> structs.Backfill:
    return structs.Backfill(
        id=job.id,
        cloud_account_id=job.account,
        start=iso(job.first),
        end=iso(job.last),
        state=job.state,
        repair=job.repair,
        hours_total=job.hours_total,
        hours_done=job.hours_done,
        hours_missing=job.hours_missing,
        reason=job.reason,
        asked_at=iso(job.asked_at),
        updated_at=iso(job.updated_at),
    )
