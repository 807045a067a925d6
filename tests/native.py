"""A ClickHouse server's native protocol over the embedded engine: the newest dialect, spoken to by the real driver.

As much of the protocol as its first revisions have: hello, ping, a query with its blocks, an exception.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clickhouse_driver.block import ColumnOrientedBlock
from clickhouse_driver.bufferedreader import BufferedSocketReader
from clickhouse_driver.bufferedwriter import BufferedSocketWriter
from clickhouse_driver.context import Context
from clickhouse_driver.protocol import ClientPacketTypes, ServerPacketTypes
from clickhouse_driver.reader import read_binary_str
from clickhouse_driver.streams.native import BlockInputStream, BlockOutputStream
from clickhouse_driver.varint import read_varint, write_varint
from clickhouse_driver.writer import write_binary_int32, write_binary_str, write_binary_uint8

from metroculus.storage.embedded import EmbeddedEngine
from metroculus.storage.engine import StoreError

REVISION = 50_000
"""Older than client info, block info and named tables: the fewest fields on the wire."""
BUFFER = 1 << 16
ROWS_A_BLOCK = 10_000
UNKNOWN_ERROR = 1002


class _Connection(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        peer: socket.socket = self.request
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fin, self.fout = BufferedSocketReader(peer, BUFFER), BufferedSocketWriter(peer, BUFFER)
        context = Context()
        context.server_info = SimpleNamespace(used_revision=REVISION, get_timezone=lambda: "UTC")
        context.client_settings = {"strings_as_bytes": False, "strings_encoding": "utf-8", "use_numpy": False,
                                   "namedtuple_as_json": True, "opentelemetry_traceparent": None}  # fmt: skip
        context.settings = {}
        self.blocks_in, self.blocks_out = BlockInputStream(self.fin, context), BlockOutputStream(self.fout, context)
        try:
            while True:
                self._packet(read_varint(self.fin))
        except (EOFError, OSError):
            return

    def _packet(self, kind: int) -> None:
        if kind == ClientPacketTypes.HELLO:
            read_binary_str(self.fin), [read_varint(self.fin) for _ in range(3)]
            for _ in range(3):  # database, user, password
                read_binary_str(self.fin)
            write_varint(ServerPacketTypes.HELLO, self.fout)
            write_binary_str("chdb", self.fout)
            for number in (*self.server.engine.dialect.version, REVISION):
                write_varint(number, self.fout)
        elif kind == ClientPacketTypes.PING:
            write_varint(ServerPacketTypes.PONG, self.fout)
        elif kind == ClientPacketTypes.QUERY:
            try:
                self._query(self._read_query())
            except StoreError as failure:
                self._exception(str(failure), failure.code or UNKNOWN_ERROR)
            else:
                write_varint(ServerPacketTypes.END_OF_STREAM, self.fout)
        self.fout.flush()

    def _read_query(self) -> str:
        read_binary_str(self.fin)  # its id
        while read_binary_str(self.fin):  # settings, all of them numbers
            read_varint(self.fin)
        read_varint(self.fin), read_varint(self.fin)  # stage, compression
        text = read_binary_str(self.fin)
        assert read_varint(self.fin) == ClientPacketTypes.DATA
        self.blocks_in.read()  # no external tables
        return str(text)

    def _query(self, text: str) -> None:
        engine = self.server.engine
        verb = text.split(None, 1)[0].upper()
        if verb == "INSERT":
            table, _, rest = text.split("INTO ", 1)[1].partition(" ")
            names = [name.strip() for name in rest[rest.index("(") + 1 : rest.index(")")].split(",")]
            types = dict((row[0], row[1]) for row in engine.query(f"DESCRIBE TABLE {table}"))
            self._send([(name, types[name]) for name in names], [])
            self.fout.flush()
            while read_varint(self.fin) == ClientPacketTypes.DATA and (block := self.blocks_in.read()).num_columns:
                engine.insert(table, names, [[_plain(v) for v in row] for row in block.get_rows()])
        elif verb == "SELECT":
            columns = [(row[0], row[1]) for row in engine.query(f"DESCRIBE TABLE ({text})")]
            rows = list(engine.query(text))
            self._send(columns, [])
            for first in range(0, len(rows), ROWS_A_BLOCK):
                self._send(columns, rows[first : first + ROWS_A_BLOCK])
        else:
            engine.command(text)

    def _send(self, columns: list[tuple[str, str]], rows: Sequence[Sequence[Any]]) -> None:
        write_varint(ServerPacketTypes.DATA, self.fout)
        if rows:
            data = [list(column) for column in zip(*rows, strict=True)]
            self.blocks_out.write(ColumnOrientedBlock(columns, data))
            return
        write_varint(len(columns), self.fout), write_varint(0, self.fout)
        for name, kind in columns:
            write_binary_str(name, self.fout), write_binary_str(kind, self.fout)

    def _exception(self, text: str, code: int) -> None:
        write_varint(ServerPacketTypes.EXCEPTION, self.fout)
        write_binary_int32(code, self.fout)
        for part in ("DB::Exception", text, ""):
            write_binary_str(part, self.fout)
        write_binary_uint8(0, self.fout)


def _plain(value: Any) -> Any:
    return int(value.timestamp()) if isinstance(value, datetime) else value


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    engine: EmbeddedEngine


class NativeListener:
    """Serves an embedded store of its own on 127.0.0.1 until it is closed."""

    def __init__(self, folder: Path) -> None:
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.engine = EmbeddedEngine(folder)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"clickhouse://default:x@127.0.0.1:{self._server.server_address[1]}/default"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.engine.close()
