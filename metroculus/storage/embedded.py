"""The embedded engine: a ClickHouse inside this machine (chdb), one folder, nothing to install or to run."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO
from uuid import uuid4

import msgspec

from metroculus.storage import arrow
from metroculus.storage.embedded_process import BLOCK, DATA, DONE, FORMAT, OWNED, read_frame, write_frame
from metroculus.storage.engine import Block, Column, Dialect, Engine, StoreError, StoreOwned, Value, Writes, literal

log = logging.getLogger("storage")

BLOCK_PREFIX = "block-"
"""Of the names of files that rows are handed over in; a random number follows."""
MOST_LOG_BYTES = 1 << 20
"""Of the engine's own log, when it is started."""
ROOM_BYTES = 8 << 20
"""That must be free before tables are made or changed."""
ANSWER_SECONDS = 150.0
"""Longer than any statement may run: who is silent for that long is hung."""

_ENCODER = msgspec.json.Encoder(enc_hook=str)
"""Kinds of text (ids) are text."""
_ROW = msgspec.json.Decoder(list[Value])
_NAMED_ROW = msgspec.json.Decoder(dict[str, Value])


class EmbeddedEngine(Engine):
    """One folder, owned by one process at a time.

    A process of its own that dies is started again with the next statement; the statement that it died with has failed.

    Raises:
        StoreOwned: another process has the folder.
        StoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.writes = Writes()
        self._folder = folder.absolute()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._dialect = Dialect((0, 0))
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._ownership = os.open(self._folder / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as problem:
            raise StoreError(f"{folder}: {problem.strerror}") from None
        try:
            self._own()
            if not (self._folder / DATA).exists():
                self.require_room()
            with self._lock:
                self._start()
        except BaseException:
            self._end()
            os.close(self._ownership)
            raise
        for left in self._folder.glob(f"{BLOCK_PREFIX}{32 * '[0-9a-f]'}"):  # of a process that was killed
            with suppress(OSError):
                left.unlink()

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    @property
    def alone(self) -> bool:
        return True

    @property
    def one_place(self) -> bool:
        return True

    @property
    def process_id(self) -> int | None:
        """Of the engine's own process."""
        return self._process.pid if self._process is not None else None

    def _own(self) -> None:
        """Take the folder's lock, which ends with this process. Its engine has a lock of its own, and may end later.

        Raises:
            StoreOwned, StoreError
        """
        try:
            fcntl.flock(self._ownership, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreOwned(self._owned) from None
        except OSError as problem:
            raise StoreError(f"{self._folder} cannot be locked: {problem.strerror}") from None

    def require_room(self) -> None:
        """Refuse a change of the schema on a full disk.

        The engine ignores that it could not write a table's file, and cannot open the store afterwards.

        Raises:
            StoreError
        """
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < ROOM_BYTES:
            raise StoreError(f"{self._folder}: less than {ROOM_BYTES >> 20} MiB are free; make room first")

    @property
    def _owned(self) -> str:
        return f"the store in {self._folder} is in use by another process: stop it, or ask it over HTTP"

    def _start(self) -> subprocess.Popen[bytes]:
        with self._open_log() as log:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "metroculus.storage.embedded_process", str(self._folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,  # what a buffer had swallowed, poll would not see
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,
                )
            except OSError as problem:  # no descriptors, no memory
                raise StoreError(f"the embedded engine cannot be started: {problem.strerror}") from None
        self._process = process
        frame = self._read(process)
        kind, text = frame[:1], frame[1:].decode("utf-8", "replace")
        if kind == DONE:
            major, minor = text.split(".")[:2]
            self._dialect = Dialect((int(major), int(minor)))
            return process
        self._end()
        if kind == OWNED:
            raise StoreOwned(self._owned)
        raise StoreError(f"the store in {self._folder} cannot be opened: {_first_line(text)}")

    def _open_log(self) -> IO[bytes]:
        """Where the engine's own warnings go: they are nothing to whoever starts a service.

        Raises:
            StoreError
        """
        path = self._folder / "engine.log"
        try:
            large = path.exists() and path.stat().st_size > MOST_LOG_BYTES
            return open(path, "wb" if large else "ab", opener=partial(os.open, mode=0o600))
        except OSError as problem:
            raise StoreError(f"{path}: {problem.strerror}") from None

    def _read(self, process: subprocess.Popen[bytes]) -> bytes:
        """One frame; whoever does not give one is ended.

        Raises:
            StoreError
        """
        assert process.stdout is not None
        waiting = select.poll()  # select knows no descriptor above 1,023
        waiting.register(process.stdout, select.POLLIN)
        readable = waiting.poll(1000 * ANSWER_SECONDS)
        frame = read_frame(process.stdout) if readable else None
        if frame is None:
            self._end()
            raise StoreError("the embedded engine died" if readable else "the embedded engine does not answer")
        return frame

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _ask(self, kind: str, sql: str) -> Iterator[bytes]:
        """The blocks of an answer; holds the engine until the last was taken.

        Raises:
            StoreError
        """
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            process = self._process
            if process is None or process.poll() is not None:
                self._end()
                log.warning("starting the embedded engine again")
                process = self._start()
            assert process.stdin is not None
            try:
                write_frame(process.stdin, msgspec.msgpack.encode((kind, sql)))
            except OSError:
                self._end()
                raise StoreError("the embedded engine died") from None
            frame = self._read(process)
            try:
                while frame[:1] == BLOCK:
                    yield frame[1:]
                    frame = self._read(process)
            except GeneratorExit:  # what is left of this answer would be taken for the next one's
                while frame[:1] == BLOCK:
                    frame = self._read(process)
                raise
            if frame[:1] != DONE:
                text = frame[1:].decode("utf-8", "replace")
                raise StoreError(_first_line(text), _code(text))

    def command(self, sql: str) -> None:
        for _ in self._ask("command", sql):
            pass

    def query(self, sql: str) -> Iterator[Sequence[Value]]:
        for block in self._ask("query", sql):
            yield from _ROW.decode_lines(block)

    def rows(self, sql: str) -> Iterator[dict[str, Value]]:
        for block in self._ask("rows", sql):
            yield from _NAMED_ROW.decode_lines(block)

    def columns(self, sql: str) -> dict[str, Column]:
        return arrow.columns_of(self._ask("columns", sql))

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        if rows:
            names = ", ".join(columns)
            lines = _ENCODER.encode_lines(rows)
            with self._handed_over(lambda file: file.write_bytes(lines)) as file:
                self.command(f"INSERT INTO {table} ({names}) FROM INFILE {file} FORMAT {FORMAT}")

    def insert_blocks(self, table: str, blocks: Sequence[Block]) -> None:
        names = ", ".join(blocks[0])
        with self._handed_over(lambda file: arrow.write_stream(file, blocks)) as file:
            self.command(f"INSERT INTO {table} ({names}) FROM INFILE {file} FORMAT ArrowStream")

    @contextmanager
    def _handed_over(self, write: Callable[[Path], object]) -> Iterator[str]:
        """Rows in a file beside the data, because a pipe could block; yields the file's name as a literal of SQL.

        Raises:
            StoreError: it cannot be written.
        """
        file = self._folder / f"{BLOCK_PREFIX}{uuid4().hex}"
        with self.writes.noted():
            try:
                try:
                    write(file)
                except OSError as problem:
                    raise StoreError(f"{self._folder}: {problem.strerror}") from None
                yield literal(str(file))
            finally:
                file.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._end()
                os.close(self._ownership)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "unknown failure"


def _code(text: str) -> int | None:
    """ClickHouse's number of an error, as it begins its text."""
    found = re.match(r"Code: (\d+)", text.strip())
    return int(found[1]) if found else None
