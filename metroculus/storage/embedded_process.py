"""The embedded engine's own process: chdb over one folder, asked over pipes.

It is a process of its own because the engine holds the interpreter and is not fork-safe. It ends when the other end of
its input is closed, whichever way that happened, and with it the lock on its data is gone.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import msgspec

LEAVING_SECONDS = 60.0
"""How long an engine is waited for whose owner is gone: it ends with the statement that it is at."""

NOT_INSTALLED = "pip install 'metroculus[embedded]', or set CLICKHOUSE_URL to a server"

DATA = "data"
"""The engine's own folder in the store's."""

BLOCK, DONE, FAILED, OWNED = b"b", b"d", b"f", b"o"
FORMAT = "JSONCompactEachRow"
FORMATS = {"query": FORMAT, "rows": "JSONEachRow", "columns": "ArrowStream"}
"""What an answer is written in, by the kind of question."""
SETTINGS = (
    "SET max_query_size = 67108864, max_ast_elements = 5000000, max_expanded_ast_elements = 5000000,"
    " max_partitions_per_insert_block = 0, max_execution_time = 120, input_format_json_named_tuples_as_objects = 0,"
    " output_format_json_quote_denormals = 0, session_timezone = 'UTC', max_block_size = 65409,"
    " input_format_parallel_parsing = 0, output_format_arrow_compression_method = 'none',"
    " output_format_arrow_low_cardinality_as_dictionary = 1,"
    " output_format_arrow_use_signed_indexes_for_dictionary = 1"
)
_HEAD = struct.Struct("<I")


def write_frame(to: IO[bytes], *parts: bytes) -> None:
    rest = memoryview(_HEAD.pack(sum(map(len, parts))) + b"".join(parts))
    while rest:
        rest = rest[to.write(rest) :]
    to.flush()


def read_frame(source: IO[bytes]) -> bytes | None:
    """One frame, None at the end."""
    head = _exactly(source, _HEAD.size)
    return _exactly(source, _HEAD.unpack(head)[0]) if head is not None else None


def _exactly(source: IO[bytes], size: int) -> bytes | None:
    parts = []
    while size:
        part = source.read(size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def own(folder: Path) -> int:
    """Take the lock of the folder's data; its descriptor must stay open.

    Raises:
        BlockingIOError: another engine has had it for as long as an engine may take to end.
        OSError: it cannot be opened.
    """
    descriptor = os.open(folder / "engine.lock", os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + LEAVING_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def main(folder: Path) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the engine prints is not an answer
    questions: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        """Hear the end of the input also while a statement runs."""
        while (frame := read_frame(sys.stdin.buffer)) is not None:
            questions.put(frame)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    try:
        own(folder)
    except BlockingIOError:
        return write_frame(answers, OWNED)
    except OSError as problem:
        return write_frame(answers, FAILED, f"engine.lock: {problem.strerror}".encode())
    try:
        import chdb
        from chdb.session import Session
    except ImportError:
        return write_frame(answers, FAILED, NOT_INSTALLED.encode())

    failures = (chdb.ChdbError, RuntimeError)  # sessions raise another class of the same name, which is a RuntimeError
    try:
        session = Session(str(folder / DATA))
        session.query(SETTINGS)
        session.query("CREATE DATABASE IF NOT EXISTS metroculus")
        session.query("USE metroculus")
    except failures as problem:
        return write_frame(answers, FAILED, str(problem).encode())
    write_frame(answers, DONE, str(session.query("SELECT version()", "TabSeparated")).encode())
    with suppress(BrokenPipeError):  # whoever asked is gone, and so are we
        while True:
            kind, sql = msgspec.msgpack.decode(questions.get(), type=tuple[str, str])
            try:
                if kind in FORMATS and sql.startswith("SELECT"):
                    for block in session.send_query(sql, FORMATS[kind]):
                        write_frame(answers, BLOCK, block.bytes())
                elif kind in FORMATS:  # the engine streams nothing but SELECT
                    write_frame(answers, BLOCK, session.query(sql, FORMATS[kind]).bytes())
                else:
                    session.query(sql)
            except failures as problem:
                write_frame(answers, FAILED, str(problem).encode())
            else:
                write_frame(answers, DONE)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:  # noqa: BLE001  (there is nobody to raise it to; engine.log has it)
        traceback.print_exc()
    os._exit(0)  # the thread that listens would hold up an orderly end
