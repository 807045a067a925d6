"""The store as services see it: opened once, by one place, over the engine that ``CLICKHOUSE_URL`` names."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from metroculus.storage.assets import AssetDays
from metroculus.storage.columns import FENCED, TABLES
from metroculus.storage.days import FollowedDays
from metroculus.storage.documents import Documents
from metroculus.storage.embedded import EmbeddedEngine
from metroculus.storage.engine import Engine, StoreError, StoreTooNew, StoreUrlError
from metroculus.storage.gaps import Gaps
from metroculus.storage.history import History
from metroculus.storage.inbox import Inbox
from metroculus.storage.influx import InfluxSent
from metroculus.storage.jobs import Jobs
from metroculus.storage.ledger import COUNTER_BITS, Ledger
from metroculus.storage.live import LivePoints
from metroculus.storage.maintenance import Maintenance
from metroculus.storage.migrations import MIGRATIONS
from metroculus.storage.migrations.runner import migrate, require_columns
from metroculus.storage.migrations.steps import Migration
from metroculus.storage.savings import SavingsDays
from metroculus.storage.server import ServerEngine, parse_url
from metroculus.storage.summaries import Summaries

log = logging.getLogger("storage")

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 8
MAX_LATE = 4
"""With so many threads held by calls that hang, the next question is not asked."""
EMBEDDED = "embedded:"
FENCE_SECONDS = 60.0
"""The highest stored fence is read at most so often; locks and etcd count further between two reads."""


class StoreLate(StoreError):
    """A call that did not end in time.

    Args:
        running: the call, which goes on.
    """

    def __init__(self, reason: str, running: asyncio.Future[Any]) -> None:
        super().__init__(reason)
        self.running = running


class Store:
    """Everything that is stored; every part blocks, ``run`` calls it from a loop."""

    def __init__(
        self, engine: Engine, clock: Callable[[], float], migrations: Sequence[Migration] = MIGRATIONS
    ) -> None:
        self.engine = engine
        self._migrations = migrations
        self.clock = clock
        self.ledger = Ledger(engine, clock)
        self.history = History(engine)
        self.summaries = Summaries(engine, self.ledger, self.history)
        self.assets = AssetDays(engine)
        self.savings = SavingsDays(engine)
        self.gaps = Gaps(engine)
        self.followed_days = FollowedDays(engine)
        self.jobs = Jobs(engine, clock)
        self.documents = Documents(engine, clock)
        self.inbox = Inbox(engine, clock)
        self.influx_sent = InfluxSent(engine)
        self.live = LivePoints(engine, clock)
        self.maintenance = Maintenance(engine, self.ledger, self.jobs, self.inbox, self.documents)
        self._failed: str | None = None
        """Why the last call failed; None where it did not."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self._migrating = threading.Lock()
        self._migrated = False
        self._fence, self._fence_at = 0, -FENCE_SECONDS
        self._late = 0
        """Calls that are under way though nobody waits for them any more."""

    @property
    def failed(self) -> str | None:
        """Why the last call failed, or the last that wrote: a full disk is still read. None where neither did."""
        return self._failed or self.engine.writes.failure

    def migrate(self) -> None:
        """Bring the schema up to date, once.

        Raises:
            StoreError
        """
        with self._migrating:
            if not self._migrated:
                migrate(self.engine, self._migrations)
                require_columns(self.engine, TABLES)
                self._migrated = True

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """A blocking call to a part of the store, on its own threads.

        Raises:
            StoreError
        """

        def call() -> R:
            self.migrate()
            return function(*args, **kwargs)

        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except StoreError as failure:
            self._failed = str(failure)
            raise
        self._failed = None
        return answer

    async def ask(self, seconds: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``run`` with a time limit; after ``MAX_LATE`` calls that were late new ones fail at once.

        Raises:
            StoreLate: the call goes on, and nobody waits for it.
            StoreError
        """
        if self._late >= MAX_LATE:
            raise StoreError("the store does not answer")
        running = asyncio.ensure_future(self.run(function, *args, **kwargs))
        done, _ = await asyncio.wait({running}, timeout=seconds)
        if done:
            return running.result()
        self._failed = "the store did not answer in time"
        self._late += 1

        def over(late: asyncio.Future[R]) -> None:
            self._late -= 1
            if not late.cancelled():
                late.exception()  # its failure was told when it was late

        running.add_done_callback(over)
        raise StoreLate(self._failed, running)

    def highest_fence(self) -> int:
        """The highest fence that ever wrote anything; a new one starts above it.

        Raises:
            StoreError
        """
        now = time.monotonic()
        if now - self._fence_at >= FENCE_SECONDS:
            parts = " UNION ALL ".join(f"SELECT max(sequence) AS newest FROM {table.name}" for table in FENCED)
            rows = list(self.engine.rows(f"SELECT max(newest) AS highest FROM ({parts})"))
            self._fence, self._fence_at = int(rows[0]["highest"] or 0) >> COUNTER_BITS, now
        return self._fence

    def version(self, account: str) -> tuple[int, ...]:
        """Another one whenever this process has changed what is stored of an account."""
        parts = (self.ledger, self.assets, self.savings)
        return tuple(part.versions.of(account) for part in parts)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.engine.close()


def check_url(text: str) -> str:
    """``embedded:PATH`` or a server's URL, as it was given.

    Raises:
        StoreUrlError
    """
    if text == EMBEDDED:
        raise StoreUrlError("must be embedded:PATH")
    if not text.startswith(EMBEDDED):
        parse_url(text)
    return text


def is_embedded(url: str) -> bool:
    return url.startswith(EMBEDDED)


def open_engine(url: str) -> Engine:
    """The engine that a URL names.

    Raises:
        StoreOwned, StoreError
    """
    return EmbeddedEngine(Path(url[len(EMBEDDED) :])) if is_embedded(url) else ServerEngine(url)


def open_store(url: str, clock: Callable[[], float] = time.time) -> Store:
    """Open a store. A server that is away now is no reason to fail: the schema is brought up to date by the first call.

    Raises:
        StoreOwned: another process has its folder.
        StoreError: its folder cannot be used, or its schema is newer than this program.
    """
    store = Store(open_engine(url), clock)
    try:
        store.migrate()
    except StoreError as failure:
        if is_embedded(url) or isinstance(failure, StoreTooNew):
            store.close()
            raise
        store._failed = str(failure)
        log.warning("the store cannot be used yet: %s", failure)
    return store
