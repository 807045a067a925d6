"""Tasks over RabbitMQ, for as many workers as it takes: dramatiq's queues, one for each kind of work.

Whoever makes the rounds puts tasks into the queues; whoever is free takes one, acknowledges it when it is done, and
sends what became of it back. A worker that is killed gives its tasks back to the others at once. A task that fails by a
defect is tried again, then kept as a dead letter; every other failure is an answer, and the rounds try again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec

from metroculus.config import Role
from metroculus.metroculus_worker.tasks import KINDS, Done, Kind, Task
from metroculus.metroculus_worker.works import BACKFILLS_SHARE, SILENT_SHARE

log = logging.getLogger("queue")

P = ParamSpec("P")
T = TypeVar("T")

NAMES = "metroculus"
HEARTBEAT_SECONDS = 10
"""A worker that hangs as a whole has lost its tasks after two of them."""
GIVEN_AGAIN_SECONDS = 1800
"""A task that nothing was heard of for so long is given again: its hours are stored once, however often it is given."""
DEFECT_RETRIES, FIRST_RETRY_MS, LAST_RETRY_MS = 3, 1_000, 60_000
TELL_AGAIN_SECONDS = 1.0
STOP_MS = 30_000
"""What a stop waits for tasks that do not leave off, and for a RabbitMQ that is away."""
RESULTS = "done"
SILENT = "silent"


class QueueError(OSError):
    """RabbitMQ cannot be used."""


def _queue_of(task: Task) -> str:
    return SILENT if task.kind == "extract" and task.silent else task.kind


def _threads(queue: str, parallel: int) -> int:
    """Tasks of a queue that one worker does side by side."""
    if queue == SILENT:
        return max(1, parallel // SILENT_SHARE)
    return parallel if queue in ("extract", "summaries") else max(1, parallel // BACKFILLS_SHARE)


class TaskQueue:
    """The hands that are other workers', and this one's.

    Args:
        url: ``amqp://user:password@host:port/vhost``.
        took: is called on the loop with what became of tasks, while this worker makes the rounds.
    """

    def __init__(self, url: str, parallel: int, took: Callable[[Done], None]) -> None:
        separator = "&" if "?" in url else "?"
        self._url = url if "heartbeat=" in url else f"{url}{separator}heartbeat={HEARTBEAT_SECONDS}"
        self._broker = self._make_broker()
        """What sends; those that take have one each."""
        kinds = [kind for of_role in KINDS.values() for kind in of_role]
        self._actors = {name: self._actor(self._broker, name) for name in (*kinds, SILENT, RESULTS)}
        self._takers: dict[str, Any] = {}
        """What takes messages from a queue, by its name."""
        self._one_thread = ThreadPoolExecutor(1, thread_name_prefix="queue")
        """Everything is sent by one thread: a connection is a thread's."""
        self._parallel = parallel
        self._took = took
        self._loop: asyncio.AbstractEventLoop | None = None
        self._do: Callable[[Task], Awaitable[None]] | None = None
        self._given: dict[tuple[Kind, str], float] = {}
        """When tasks of which nothing was heard yet were given."""
        self._running: set[asyncio.Task[None]] = set()
        self._untold: asyncio.Queue[Done] = asyncio.Queue()
        self._telling: asyncio.Task[None] | None = None

    async def give(self, tasks: Sequence[Task]) -> None:
        by_queue: dict[str, list[Task]] = {}
        for task in tasks:
            by_queue.setdefault(_queue_of(task), []).append(task)
        for name, of_queue in by_queue.items():
            await self._on_thread(self._send, name, [_text(task) for task in of_queue])
            now = time.monotonic()
            self._given.update({(task.kind, task.account): now for task in of_queue})

    def busy(self, kind: Kind, account: str) -> bool:
        given_at = self._given.get((kind, account))
        return given_at is not None and time.monotonic() - given_at < GIVEN_AGAIN_SECONDS

    async def let_go(self, account: str) -> None:
        for one in [one for one in self._given if one[1] == account]:
            del self._given[one]

    async def lead(self) -> None:
        """Hear from now on what becomes of tasks; nothing is known of those that others gave."""
        self._given.clear()
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open, RESULTS, 1)

    async def follow(self) -> None:
        """Another worker makes the rounds."""
        await asyncio.to_thread(self._shut, RESULTS)

    async def counts(self) -> dict[str, tuple[int, int]]:
        """Messages that wait and dead letters, by queue.

        Raises:
            QueueError
        """
        return await self._on_thread(self._counts)

    async def open(self, roles: Sequence[Role], do: Callable[[Task], Awaitable[None]]) -> None:
        """Take tasks of these roles from now on; while RabbitMQ is away, as soon as it is there."""
        self._do, self._loop = do, asyncio.get_running_loop()
        self._telling = asyncio.create_task(self._tell_on())
        names = [kind for role in roles for kind in KINDS[role]]
        for name in (*names, *((SILENT,) if "extractor" in roles else ())):
            await asyncio.to_thread(self._open, name, _threads(name, self._parallel))

    def tell(self, done: Done) -> None:
        """Send what became of a task; call on the loop."""
        self._untold.put_nowait(done)

    async def close(self) -> None:
        """Leave off; tasks that are being done go back into their queues."""
        shutting = [asyncio.create_task(asyncio.to_thread(self._shut, name)) for name in list(self._takers)]
        while shutting and not all(one.done() for one in shutting):
            for task in list(self._running):
                task.cancel()
            await asyncio.wait(shutting, timeout=0.1)
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        try:
            while not self._untold.empty():
                await self._on_thread(self._send, RESULTS, [_text(self._untold.get_nowait())])
            await self._on_thread(self._broker.close)
        except Exception as problem:  # noqa: BLE001  (it is away: tasks are given again, and nothing is left to close)
            log.info("RabbitMQ could not be told of the end: %s", type(problem).__name__)
        self._one_thread.shutdown(wait=False)

    async def _on_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._one_thread, call)

    def _send(self, name: str, bodies: Sequence[str]) -> None:
        """Put messages into a queue; when it returns the broker has them.

        Raises:
            QueueError
        """
        try:
            for body in bodies:
                self._actors[name].send(body)
        except Exception as problem:  # noqa: BLE001  (pika's own, dramatiq's, plain ones)
            raise QueueError(f"RabbitMQ cannot be used: {type(problem).__name__}") from None

    def _counts(self) -> dict[str, tuple[int, int]]:
        found = {}
        try:
            for name in self._actors:
                waiting, delayed, dead = self._broker.get_queue_message_counts(f"{NAMES}.{name}")
                found[name] = (waiting + delayed, dead)
        except Exception as problem:  # noqa: BLE001  (pika's own, dramatiq's, plain ones)
            with suppress(Exception):
                del self._broker.connection  # this thread's: the next call makes another
            raise QueueError(f"RabbitMQ cannot be used: {type(problem).__name__}") from None
        return found

    def _make_broker(self) -> Any:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
        from dramatiq.middleware import Retries

        retries = Retries(max_retries=DEFECT_RETRIES, min_backoff=FIRST_RETRY_MS, max_backoff=LAST_RETRY_MS)
        return RabbitmqBroker(url=self._url, confirm_delivery=True, middleware=[retries])

    def _actor(self, broker: Any, name: str) -> Any:
        from dramatiq import actor

        receive = self._receive_result if name == RESULTS else self._receive
        return actor(broker=broker, actor_name=name, queue_name=f"{NAMES}.{name}")(receive)

    def _open(self, name: str, threads: int) -> None:
        from dramatiq import Worker

        broker = self._make_broker()
        self._actor(broker, name)
        taker = self._takers[name] = Worker(broker, worker_threads=threads)
        taker.queue_prefetch = threads  # what one holds that it is not at, another could be at
        taker.start()

    def _shut(self, name: str) -> None:
        """Take no more; what is being done is waited for, what was taken and not begun goes back."""
        taker = self._takers.pop(name, None)
        if taker is not None:
            taker.stop(timeout=STOP_MS)
            with suppress(Exception):  # it is away: nothing is left to close
                taker.broker.close()

    async def _tell_on(self) -> None:
        while True:
            done = await self._untold.get()
            while True:
                try:
                    await self._on_thread(self._send, RESULTS, [_text(done)])
                    break
                except QueueError as problem:
                    log.warning("what became of tasks cannot be told yet: %s", problem)
                    await asyncio.sleep(TELL_AGAIN_SECONDS)

    def _receive_result(self, body: str) -> None:
        done = msgspec.json.decode(body, type=Done)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._heard, done)

    def _heard(self, done: Done) -> None:
        self._given.pop((done.task.kind, done.task.account), None)
        self._took(done)

    def _receive(self, body: str) -> None:
        """On a thread of dramatiq, until the task is done: then its message is acknowledged."""
        task = msgspec.json.decode(body, type=Task)
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._tracked(task), self._loop).result()

    async def _tracked(self, task: Task) -> None:
        if self._do is None:
            return
        running = asyncio.current_task()
        if running is not None:
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        try:
            await self._do(task)
        except asyncio.CancelledError:  # this worker ends: the task is another's
            await asyncio.shield(self._on_thread(self._send, _queue_of(task), [_text(task)]))


def _text(message: Task | Done) -> str:
    return msgspec.json.encode(message).decode()
