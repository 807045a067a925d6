"""A ClickHouse server or cluster, over its native protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, LifoQueue
from urllib.parse import parse_qsl, urlencode, urlsplit

from clickhouse_driver import Client
from clickhouse_driver import errors as driver

from metroculus.storage import schema
from metroculus.storage.engine import Dialect, Engine, StoreError, StoreUrlError, Value
from metroculus.storage.rows import Line, flat

CONNECT_SECONDS = 3
QUERY_SECONDS = 60
SILENCE_SECONDS = 25
"""A server at work tells its progress many times a second."""
CONNECTIONS = 8
"""Kept open; more are made when more are needed at once, and closed again."""

SETTINGS = {
    "max_query_size": 1 << 26,
    "max_ast_elements": 5_000_000,
    "max_expanded_ast_elements": 5_000_000,
    "max_execution_time": QUERY_SECONDS,
    "insert_distributed_sync": 1,
    "max_block_size": 16384,
}

_FAILURES = (driver.Error, OSError, EOFError)


def parse_url(text: str) -> tuple[str, str | None]:
    """The driver's URL and the name of the cluster.

    Raises:
        StoreUrlError
    """
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query))
    cluster = options.pop("cluster", None)
    if parts.scheme not in ("clickhouse", "clickhouses") or not parts.hostname:
        raise StoreUrlError("must be embedded:PATH or clickhouse://user:password@host:9000/db (clickhouses:// for TLS)")
    if cluster is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", cluster):
        raise StoreUrlError("cluster must be a cluster's name")
    return parts._replace(query=urlencode(options)).geturl(), cluster


class ServerEngine(Engine):
    """A server; a connection that failed is closed and never used again."""

    def __init__(self, url: str) -> None:
        self._url, cluster = parse_url(url)
        self._idle: LifoQueue[Client] = LifoQueue(CONNECTIONS)
        self._closed = False
        self._cluster = cluster
        self._dialect: Dialect | None = None

    @property
    def dialect(self) -> Dialect:
        if self._dialect is None:
            ((text,),) = self.query("SELECT version()")
            version = str(text).split(".")
            self._dialect = Dialect((int(version[0]), int(version[1])), self._cluster)
        return self._dialect

    @property
    def alone(self) -> bool:
        """Another replica may answer next, and lag behind the one that answered last."""
        return False

    @contextmanager
    def _client(self) -> Iterator[Client]:
        if self._closed:
            raise StoreError("the store is closed")
        try:
            client = self._idle.get_nowait()
        except Empty:
            client = Client.from_url(self._url)
            client.connection.connect_timeout = CONNECT_SECONDS
            client.connection.send_receive_timeout = SILENCE_SECONDS
        whole = False
        try:
            yield client
            whole = True
        except _FAILURES as problem:
            raise StoreError(_told(problem)) from None
        finally:
            if whole and not self._closed and not self._idle.full():
                self._idle.put_nowait(client)
            else:
                client.disconnect()

    def command(self, sql: str) -> None:
        with self._client() as client:
            client.execute(sql, settings=SETTINGS)

    def query(self, sql: str) -> Iterator[Sequence[Value]]:
        with self._client() as client:
            yield from client.execute_iter(sql, settings=SETTINGS)

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        if rows:
            with self._client() as client:
                client.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES", list(rows), settings=SETTINGS)

    def insert_lines(self, account: str, lines: Sequence[Line]) -> None:
        self.insert(schema.ALLOCATIONS.name, schema.ALLOCATIONS.names, [flat(account, line) for line in lines])

    def close(self) -> None:
        self._closed = True
        while True:
            try:
                self._idle.get_nowait().disconnect()
            except Empty:
                return


def _told(problem: BaseException) -> str:
    """What failed, without address or credentials."""
    if isinstance(problem, driver.ServerException):
        return f"the store answered with error {problem.code}: {problem.message.splitlines()[0][:200]}"
    if isinstance(problem, EOFError):
        return "the store closed the connection"
    if isinstance(problem, (driver.NetworkError, driver.SocketTimeoutError, OSError)):
        return f"the store could not be reached ({type(problem).__name__})"
    return f"the store was not understood ({type(problem).__name__}: {str(problem).splitlines()[0][:200]})"
