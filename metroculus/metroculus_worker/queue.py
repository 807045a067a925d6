"""Tasks over RabbitMQ, for as many workers as it takes: dramatiq's queues, one for each kind of work.

Whoever makes the rounds puts tasks into the queues; whoever is free takes one, acknowledges it when it is done, and
sends what became of it back. A worker that is killed gives its tasks back to the others at once. A task that fails by a
defect is tried again, then kept as a dead letter; every other failure is an answer, and the rounds try again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace

from metroculus.config import WORKER_ROLES, Role
from metroculus.metroculus_worker.tasks import KINDS, Done, Kind, Task
from metroculus.metroculus_worker.works import NotOurs, places, share_of

log = logging.getLogger("queue")

_DONE, _TASK = msgspec.json.Decoder(Done), msgspec.json.Decoder(Task)
P = ParamSpec("P")
T = TypeVar("T")

NAMES = "metroculus"
HEARTBEAT_SECONDS = 10
"""A worker that hangs as a whole has lost its tasks after two of them."""
GIVEN_AGAIN_SECONDS, BACKFILL_GIVEN_AGAIN_SECONDS = 600, 1800
"""A task that nothing was heard of for so long, and that does not wait in its queue, is given again."""
BUSY_MS = 2_000
"""A task of a cluster that is being worked on is taken again after so long."""
RETURN_SECONDS = 1.0
"""A result that is another leader's goes back into the queue after a moment."""
DEFECT_RETRIES, FIRST_RETRY_MS, LAST_RETRY_MS = 3, 1_000, 60_000
TELL_AGAIN_SECONDS = 1.0
STOP_SECONDS = 15.0
"""What a stop waits for tasks that do not leave off, and for a RabbitMQ that hangs."""
RESULTS = "done"
SILENT = "silent"


_RESULTS_OF_TASK: ContextVar[list[asyncio.Future[None]]] = ContextVar("results of task")
"""What is told of the task that is being done; each is done when it is sent."""


class QueueError(OSError):
    """RabbitMQ cannot be used."""


def _queue_of(task: Task) -> str:
    return SILENT if task.kind == "extract" and task.silent else task.kind


def _queues_of(kind: Kind) -> tuple[str, ...]:
    return (kind, SILENT) if kind == "extract" else (kind,)


def _queues_of_roles(roles: Sequence[Role]) -> list[tuple[str, Kind]]:
    """The queues of the roles' work, each with its kind."""
    return [(name, kind) for role in roles for kind in KINDS[role] for name in _queues_of(kind)]


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
        names = [name for name, _ in _queues_of_roles(WORKER_ROLES)]
        self._actors = {name: self._actor(self._broker, name) for name in (*names, RESULTS)}
        self._takers: dict[str, Any] = {}
        """What takes messages from a queue, by its name."""
        self._sender = _DaemonThread()
        """Everything is sent by one thread: a connection is a thread's."""
        self._parallel = parallel
        self._took = took
        self._loop: asyncio.AbstractEventLoop | None = None
        self._do: Callable[[Task], Awaitable[None]] | None = None
        self._given: dict[tuple[Kind, str], float] = {}
        """When tasks of which nothing was heard yet were given."""
        self._running: set[asyncio.Task[None]] = set()
        self._empty: set[str] = set()
        """Queues in which nothing waited when they were last looked at."""
        self._term = 0
        self._untold: asyncio.Queue[tuple[Done, asyncio.Future[None]]] = asyncio.Queue()
        self._telling: asyncio.Task[None] | None = None

    async def give(self, tasks: Sequence[Task]) -> None:
        by_queue: dict[str, list[Task]] = {}
        for task in tasks:
            by_queue.setdefault(_queue_of(task), []).append(task)
        for name, of_queue in by_queue.items():
            given = {(task.kind, task.account): time.monotonic() for task in of_queue}
            self._given |= given  # first: its result may be here before the last one is sent
            self._empty.discard(name)
            try:
                await self._sender.run(self._send, name, [_text(replace(task, term=self._term)) for task in of_queue])
            except QueueError:
                for one in given:
                    self._given.pop(one, None)
                raise

    def busy(self, kind: Kind, account: str) -> bool:
        given_at = self._given.get((kind, account))
        if given_at is None:
            return False
        patience = BACKFILL_GIVEN_AGAIN_SECONDS if kind == "backfills" else GIVEN_AGAIN_SECONDS
        lost = time.monotonic() - given_at >= patience and self._empty.issuperset(_queues_of(kind))
        return not lost

    async def let_go(self, account: str) -> None:
        for one in [one for one in self._given if one[1] == account]:
            del self._given[one]

    async def lead(self, term: int) -> None:
        """Hear from now on what becomes of tasks; nothing is known of those that others gave.

        Args:
            term: a number above that of everybody who led before.
        """
        self._given.clear()
        self._term, self._loop = term, asyncio.get_running_loop()
        await _in_daemon(self._open, RESULTS, 1)

    async def follow(self) -> None:
        """Another worker makes the rounds."""
        await _in_daemon(self._shut, RESULTS)

    async def counts(self) -> dict[str, tuple[int, int]]:
        """Messages that wait and dead letters, by queue.

        Raises:
            QueueError
        """
        found = await self._sender.run(self._counts)
        self._empty = {name for name, (waiting, _) in found.items() if not waiting}
        return found

    async def open(self, roles: Sequence[Role], do: Callable[[Task], Awaitable[None]]) -> None:
        """Take tasks of these roles from now on; while RabbitMQ is away, as soon as it is there."""
        self._do, self._loop = do, asyncio.get_running_loop()
        self._telling = asyncio.create_task(self._tell_on())
        for name, kind in _queues_of_roles(roles):
            await _in_daemon(self._open, name, places(share_of(kind, name == SILENT), self._parallel))

    def tell(self, done: Done) -> None:
        """Send what became of a task; call on the loop. A task is not done before that is sent."""
        sent = asyncio.get_running_loop().create_future()
        _RESULTS_OF_TASK.get([]).append(sent)
        self._untold.put_nowait((done, sent))

    async def close(self) -> None:
        """Leave off; tasks that are being done go back into their queues."""
        ends = time.monotonic() + STOP_SECONDS
        shutting = [asyncio.create_task(_in_daemon(self._shut, name)) for name in list(self._takers)]
        while time.monotonic() < ends and not all(one.done() for one in shutting):
            for task in list(self._running):
                task.cancel()
            await asyncio.wait(shutting, timeout=0.1)
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        try:
            async with asyncio.timeout(max(1.0, ends - time.monotonic())):
                while not self._untold.empty():
                    done, _ = self._untold.get_nowait()
                    await self._sender.run(self._send, RESULTS, [_text(done)])
                await self._sender.run(self._broker.close)
        except Exception as problem:  # noqa: BLE001  (it is away: tasks are given again, and nothing is left to close)
            log.info("RabbitMQ could not be told of the end: %s", type(problem).__name__)

    def _send(self, name: str, bodies: Sequence[str], delay: int | None = None) -> None:
        """Put messages into a queue, to be taken after a delay (ms); when it returns the broker has them.

        Raises:
            QueueError
        """
        try:
            for body in bodies:
                self._actors[name].send_with_options(args=(body,), delay=delay)
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
            taker.stop(timeout=int(1000 * STOP_SECONDS))
            with suppress(Exception):  # it is away: nothing is left to close
                taker.broker.close()

    async def _tell_on(self) -> None:
        while True:
            done, sent = await self._untold.get()
            while True:
                try:
                    await self._sender.run(self._send, RESULTS, [_text(done)])
                    if not sent.done():
                        sent.set_result(None)
                    break
                except QueueError as problem:
                    log.warning("what became of tasks cannot be told yet: %s", problem)
                    await asyncio.sleep(TELL_AGAIN_SECONDS)

    def _receive_result(self, body: str) -> None:
        done = _DONE.decode(body)
        if done.task.term > self._term:  # of whoever leads now: this process does not know yet that it is not it
            time.sleep(RETURN_SECONDS)
            self._sender.submit(self._send, RESULTS, [body]).result()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._heard, done)

    def _heard(self, done: Done) -> None:
        if done.task.term == self._term:
            self._given.pop((done.task.kind, done.task.account), None)
        self._took(done)

    def _receive(self, body: str) -> None:
        """On a thread of dramatiq, until the task is done: then its message is acknowledged."""
        task = _TASK.decode(body)
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._tracked(task), self._loop).result()

    async def _tracked(self, task: Task) -> None:
        if self._do is None:
            return
        running = asyncio.current_task()
        if running is not None:
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        results: list[asyncio.Future[None]] = []
        _RESULTS_OF_TASK.set(results)
        try:
            await self._do(task)
            await asyncio.gather(*results)
        except NotOurs:  # whoever waited for the cluster here would take a place from the others
            await self._sender.run(self._send, _queue_of(task), [_text(task)], BUSY_MS)
        except asyncio.CancelledError:  # this worker ends: the task is another's
            await asyncio.shield(self._sender.run(self._send, _queue_of(task), [_text(task)]))


class _DaemonThread:
    """Does one thing after the other on a thread that a process does not wait for at its end."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._work, name="queue", daemon=True).start()

    def _work(self) -> None:
        while True:
            _answer(*self._calls.get())

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(asyncio.wrap_future(self.submit(function, *args, **kwargs)))

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args, **kwargs)))
        return future


async def _in_daemon(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """On a thread of its own, which a process does not wait for at its end."""
    future: Future[T] = Future()
    call = partial(function, *args, **kwargs)
    threading.Thread(target=_answer, args=(future, call), name="queue", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))


def _answer(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as problem:  # noqa: BLE001  (whoever waits for it is told)
        future.set_exception(problem)


def _text(message: Task | Done) -> str:
    return msgspec.json.encode(message).decode()
