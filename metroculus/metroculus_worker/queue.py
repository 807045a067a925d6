"""Tasks over RabbitMQ, by dramatiq: one queue for each kind of task, and one for results.

The leading worker submits tasks. Every worker consumes them, sends the result, and then acknowledges the message; the
messages of a worker that is killed are delivered to another one at once. A task that fails by a defect is retried and
then becomes a dead letter. Any other failure is a result, and the leader submits the task again when it is due.
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
from metroculus.metroculus_worker.task_runner import NotOurs, pool_size, share_of
from metroculus.metroculus_worker.tasks import KINDS, Kind, Task, TaskResult

log = logging.getLogger("queue")

_RESULT, _TASK = msgspec.json.Decoder(TaskResult), msgspec.json.Decoder(Task)
P = ParamSpec("P")
T = TypeVar("T")

NAMES = "metroculus"
HEARTBEAT_SECONDS = 10
"""After two missed heartbeats RabbitMQ delivers the messages of a worker to others."""
RESUBMIT_SECONDS, BACKFILL_RESUBMIT_SECONDS = 600, 1800
"""A task without a result for so long is submitted again, where its queue is empty."""
BUSY_MS = 2_000
"""Delay before a task is tried again whose cluster is owned by another task."""
REQUEUE_SECONDS = 1.0
"""Delay before a result that is for another leader is put back."""
DEFECT_RETRIES, FIRST_RETRY_MS, LAST_RETRY_MS = 3, 1_000, 60_000
RESULT_RETRY_SECONDS = 1.0
STOP_SECONDS = 15.0
"""Limit of a stop, where tasks do not end or RabbitMQ hangs."""
RESULTS = "done"
SILENT = "silent"


_PENDING_RESULTS: ContextVar[list[asyncio.Future[None]]] = ContextVar("results of task")
"""Of the running task: a future for each of its results, done when the result is sent."""


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
    """An executor that shares tasks with other workers; it also consumes them.

    Args:
        url: ``amqp://user:password@host:port/vhost``.
        record: is called on the loop with the results of tasks, while this worker leads.
    """

    def __init__(self, url: str, parallel: int, record: Callable[[TaskResult], None]) -> None:
        separator = "&" if "?" in url else "?"
        self._url = url if "heartbeat=" in url else f"{url}{separator}heartbeat={HEARTBEAT_SECONDS}"
        self._broker = self._make_broker()
        """For sending; each consumer has its own."""
        names = [name for name, _ in _queues_of_roles(WORKER_ROLES)]
        self._actors = {name: self._actor(self._broker, name) for name in (*names, RESULTS)}
        self._consumers: dict[str, Any] = {}
        """By queue."""
        self._sender = _DaemonThread()
        """All messages are sent by one thread, because dramatiq keeps a connection for each thread."""
        self._parallel = parallel
        self._record = record
        self._loop: asyncio.AbstractEventLoop | None = None
        self._run_task: Callable[[Task], Awaitable[None]] | None = None
        self._in_flight: dict[tuple[Kind, str], float] = {}
        """When tasks without a result were submitted."""
        self._running: set[asyncio.Task[None]] = set()
        self._empty: set[str] = set()
        """Queues that were empty at the last count."""
        self._term = 0
        self._unsent_results: asyncio.Queue[tuple[TaskResult, asyncio.Future[None]]] = asyncio.Queue()
        self._sending_results: asyncio.Task[None] | None = None

    async def submit(self, tasks: Sequence[Task]) -> None:
        by_queue: dict[str, list[Task]] = {}
        for task in tasks:
            by_queue.setdefault(_queue_of(task), []).append(task)
        for name, of_queue in by_queue.items():
            submitted = {(task.kind, task.account): time.monotonic() for task in of_queue}
            self._in_flight |= submitted  # before sending: a result may arrive before the last task is sent
            self._empty.discard(name)
            try:
                bodies = [_encoded(replace(task, term=self._term)) for task in of_queue]
                await self._sender.run(self._send, name, bodies)
            except QueueError:
                for one in submitted:
                    self._in_flight.pop(one, None)
                raise

    def busy(self, kind: Kind, account: str) -> bool:
        submitted_at = self._in_flight.get((kind, account))
        if submitted_at is None:
            return False
        patience = BACKFILL_RESUBMIT_SECONDS if kind == "backfills" else RESUBMIT_SECONDS
        lost = time.monotonic() - submitted_at >= patience and self._empty.issuperset(_queues_of(kind))
        return not lost

    async def release(self, account: str) -> None:
        for one in [one for one in self._in_flight if one[1] == account]:
            del self._in_flight[one]

    async def start_leading(self, term: int) -> None:
        """Consume results from now on; tasks that an earlier leader submitted are not known.

        Args:
            term: above the term of every earlier leader.
        """
        self._in_flight.clear()
        self._term, self._loop = term, asyncio.get_running_loop()
        await _on_daemon_thread(self._open_consumer, RESULTS, 1)

    async def stop_leading(self) -> None:
        """Consume results no longer."""
        await _on_daemon_thread(self._close_consumer, RESULTS)

    async def counts(self) -> dict[str, tuple[int, int]]:
        """Waiting messages and dead letters, by queue.

        Raises:
            QueueError
        """
        found = await self._sender.run(self._counts)
        self._empty = {name for name, (waiting, _) in found.items() if not waiting}
        return found

    async def open(self, roles: Sequence[Role], run: Callable[[Task], Awaitable[None]]) -> None:
        """Consume tasks of these roles; consumers connect by themselves while RabbitMQ is away."""
        self._run_task, self._loop = run, asyncio.get_running_loop()
        self._sending_results = asyncio.create_task(self._send_results())
        for name, kind in _queues_of_roles(roles):
            threads = pool_size(share_of(kind, name == SILENT), self._parallel)
            await _on_daemon_thread(self._open_consumer, name, threads)

    def report(self, result: TaskResult) -> None:
        """Send a result; call on the loop. The message of the task is acknowledged after that."""
        sent = asyncio.get_running_loop().create_future()
        _PENDING_RESULTS.get([]).append(sent)
        self._unsent_results.put_nowait((result, sent))

    async def close(self) -> None:
        """Stop consuming; running tasks are cancelled and put back into their queues."""
        ends = time.monotonic() + STOP_SECONDS
        names = list(self._consumers)
        closing = [asyncio.create_task(_on_daemon_thread(self._close_consumer, name)) for name in names]
        while time.monotonic() < ends and not all(one.done() for one in closing):
            for task in list(self._running):
                task.cancel()
            await asyncio.wait(closing, timeout=0.1)
        if self._sending_results is not None:
            self._sending_results.cancel()
            await asyncio.gather(self._sending_results, return_exceptions=True)
        try:
            async with asyncio.timeout(max(1.0, ends - time.monotonic())):
                while not self._unsent_results.empty():
                    result, _ = self._unsent_results.get_nowait()
                    await self._sender.run(self._send, RESULTS, [_encoded(result)])
                await self._sender.run(self._broker.close)
        except Exception as problem:  # noqa: BLE001  (RabbitMQ is away: it delivers again what was not acknowledged)
            log.info("RabbitMQ did not answer while stopping: %s", type(problem).__name__)

    def _send(self, name: str, bodies: Sequence[str], delay: int | None = None) -> None:
        """Publish messages, with a delay in ms; when it returns RabbitMQ has confirmed them.

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

    def _open_consumer(self, name: str, threads: int) -> None:
        from dramatiq import Worker

        broker = self._make_broker()
        self._actor(broker, name)
        consumer = self._consumers[name] = Worker(broker, worker_threads=threads)
        consumer.queue_prefetch = threads  # more would wait here while other workers are idle
        consumer.start()

    def _close_consumer(self, name: str) -> None:
        """Stop consuming a queue: wait for running tasks, put back those that have not begun."""
        consumer = self._consumers.pop(name, None)
        if consumer is not None:
            consumer.stop(timeout=int(1000 * STOP_SECONDS))
            with suppress(Exception):  # RabbitMQ is away: the connection is closed already
                consumer.broker.close()

    async def _send_results(self) -> None:
        while True:
            result, sent = await self._unsent_results.get()
            while True:
                try:
                    await self._sender.run(self._send, RESULTS, [_encoded(result)])
                    if not sent.done():
                        sent.set_result(None)
                    break
                except QueueError as problem:
                    log.warning("results cannot be sent yet: %s", problem)
                    await asyncio.sleep(RESULT_RETRY_SECONDS)

    def _receive_result(self, body: str) -> None:
        result = _RESULT.decode(body)
        if result.task.term > self._term:  # it is for the new leader, and this process does not know of it yet
            time.sleep(REQUEUE_SECONDS)
            self._sender.submit(self._send, RESULTS, [body]).result()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_result, result)

    def _on_result(self, result: TaskResult) -> None:
        if result.task.term == self._term:
            self._in_flight.pop((result.task.kind, result.task.account), None)
        self._record(result)

    def _receive(self, body: str) -> None:
        """Run a task; called on a thread of dramatiq, which acknowledges the message when it returns."""
        task = _TASK.decode(body)
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._run(task), self._loop).result()

    async def _run(self, task: Task) -> None:
        if self._run_task is None:
            return
        running = asyncio.current_task()
        if running is not None:
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        results: list[asyncio.Future[None]] = []
        _PENDING_RESULTS.set(results)
        try:
            await self._run_task(task)
            await asyncio.gather(*results)
        except NotOurs:  # waiting here would keep a thread from other clusters
            await self._sender.run(self._send, _queue_of(task), [_encoded(task)], BUSY_MS)
        except asyncio.CancelledError:  # this worker stops
            await asyncio.shield(self._sender.run(self._send, _queue_of(task), [_encoded(task)]))


class _DaemonThread:
    """Runs calls in order on a daemon thread: the process can exit while one hangs."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._work, name="queue", daemon=True).start()

    def _work(self) -> None:
        while True:
            _complete(*self._calls.get())

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(asyncio.wrap_future(self.submit(function, *args, **kwargs)))

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args, **kwargs)))
        return future


async def _on_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call on a daemon thread of its own."""
    future: Future[T] = Future()
    call = partial(function, *args, **kwargs)
    threading.Thread(target=_complete, args=(future, call), name="queue", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))


def _complete(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as problem:  # noqa: BLE001  (whoever waits for it is told)
        future.set_exception(problem)


def _encoded(message: Task | TaskResult) -> str:
    return msgspec.json.encode(message).decode()
