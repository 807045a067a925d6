"""A ClickHouse server or cluster, over its native protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
from clickhouse_driver import Client
from clickhouse_driver import errors as driver

from metroculus.cost_model.columns import Coded
from metroculus.storage.engine import (
    Block,
    Column,
    Dialect,
    Engine,
    StoreError,
    StoreUrlError,
    Value,
    Writes,
    values_of,
)

CONNECT_SECONDS = 3
QUERY_SECONDS = 60
SILENCE_SECONDS = 25
"""A server at work tells its progress many times a second."""
CONNECTIONS = 8
"""Kept open; more are made when more are needed at once, and closed again."""

URL_OPTIONS = frozenset(
    (
        "secure", "verify", "ca_certs", "certfile", "keyfile", "server_hostname", "ssl_version", "ciphers",
        "compression", "compress_block_size", "connect_timeout", "send_receive_timeout", "sync_request_timeout",
        "alt_hosts", "round_robin", "client_name", "tcp_keepalive",
    )
)  # fmt: skip
"""What may stand behind the ``?`` of a server's URL, beside ``cluster``: options of the driver."""

SETTINGS = {
    "max_query_size": 1 << 26,
    "max_ast_elements": 5_000_000,
    "max_expanded_ast_elements": 5_000_000,
    "max_execution_time": QUERY_SECONDS,
    "insert_distributed_sync": 1,
    "max_block_size": 16384,
    "enable_optimize_predicate_expression": 1,  # off on the oldest servers: a view would read the whole store
}

_NUMBERS = {"UInt64": np.uint64}
"""What does not fit into the type that other whole numbers are read as."""

_FAILURES = (driver.Error, OSError, EOFError)


def parse_url(text: str) -> tuple[str, str | None]:
    """The driver's URL and the name of the cluster.

    Raises:
        StoreUrlError
    """
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise StoreUrlError("has a port that is none") from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    cluster = options.pop("cluster", None)
    unknown = options.keys() - URL_OPTIONS
    if unknown:
        raise StoreUrlError(f"has an unknown option: {', '.join(sorted(unknown))}")
    if "ca_certs" in options and not Path(options["ca_certs"]).is_file():
        raise StoreUrlError("names a file of ca_certs that is not there")
    if parts.scheme not in ("clickhouse", "clickhouses") or not parts.hostname:
        raise StoreUrlError("must be embedded:PATH or clickhouse://user:password@host:9000/db (clickhouses:// for TLS)")
    if cluster is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", cluster):
        raise StoreUrlError("cluster must be a cluster's name")
    return parts._replace(query=urlencode(options)).geturl(), cluster


class ServerEngine(Engine):
    """A server; a connection that failed is closed and never used again."""

    def __init__(self, url: str) -> None:
        self.writes = Writes()
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

    @property
    def one_place(self) -> bool:
        return self._cluster is None and "alt_hosts" not in self._url

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
            raise StoreError(_told(problem), getattr(problem, "code", None)) from None
        finally:
            if whole and not self._closed and not self._idle.full():
                self._idle.put_nowait(client)
            else:
                client.disconnect()

    def require_room(self) -> None:
        """Accept every change: a server reports a full disk itself."""

    def command(self, sql: str) -> None:
        with self._client() as client:
            client.execute(sql, settings=SETTINGS)

    def query(self, sql: str) -> Iterator[Sequence[Value]]:
        with self._client() as client:
            yield from client.execute_iter(sql, settings=SETTINGS)

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        if rows:
            with self.writes.noted(), self._client() as client:
                client.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES", list(rows), settings=SETTINGS)

    def rows(self, sql: str) -> Iterator[dict[str, Value]]:
        with self._client() as client:
            answer = client.execute_iter(sql, settings=SETTINGS, with_column_types=True)
            names = [name for name, _ in next(answer)]
            for row in answer:
                yield dict(zip(names, row, strict=True))

    def columns(self, sql: str) -> dict[str, Column]:
        with self._client() as client:
            data, columns = client.execute(sql, settings=SETTINGS, with_column_types=True, columnar=True)
        found = data or [()] * len(columns)
        return {name: _column(kind, values) for (name, kind), values in zip(columns, found, strict=True)}

    def insert_blocks(self, table: str, blocks: Sequence[Block]) -> None:
        names = list(blocks[0])
        data = [[value for block in blocks for value in values_of(block[name])] for name in names]
        with self.writes.noted(), self._client() as client:
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES"
            client.execute(sql, data, columnar=True, settings=SETTINGS)

    def close(self) -> None:
        self._closed = True
        while True:
            try:
                self._idle.get_nowait().disconnect()
            except Empty:
                return


def _column(kind: str, values: Sequence[Value]) -> Column:
    """A column of an answer by its type: numbers as an array, texts and lists of them by their distinct values."""
    if kind.startswith("Array"):
        return Coded.of(tuple(value) for value in values)
    if "String" in kind:
        return Coded.of(values)
    return np.array(values, dtype=_NUMBERS.get(kind, np.float64 if kind.startswith("Float") else np.int64))


def _told(problem: BaseException) -> str:
    """What failed, without address or credentials."""
    if isinstance(problem, driver.ServerException):
        return f"the store answered with error {problem.code}: {problem.message.splitlines()[0][:200]}"
    if isinstance(problem, EOFError):
        return "the store closed the connection"
    if isinstance(problem, (driver.NetworkError, driver.SocketTimeoutError, OSError)):
        return f"the store could not be reached ({type(problem).__name__})"
    return f"the store was not understood ({type(problem).__name__}: {str(problem).splitlines()[0][:200]})"
