"""What a caller takes of an answer, and lines that are written together."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os

import pytest
from tornado.httputil import HTTPHeaders

from tools.tornado_service.audit import FLUSH_SECONDS, AuditLog
from tools.tornado_service.logs import MOST_WAITING, WAIT_SECONDS, LineHandler, TextFormatter
from tools.tornado_service.negotiation import accepts_gzip, matches_tag, represent
from tools.tornado_service.prepared import Prepared

ACCEPTED = {
    "gzip": True, "gzip, deflate, br": True, "deflate": False, "": False, "*": True, "*;q=0": False, "gzip;q=0": False,
    "gzip; q=0.0": False, "gzip;q=0.001": True, "identity, *;q=0": False, "x-gzip": True, "GZIP": True,
    "*;q=0, gzip": True, "gzip;q=0, *": False, "gzip;q=1.2.3": False, "notgzip": False,
}  # fmt: skip


@pytest.mark.parametrize("accepted", ACCEPTED)
def test_gzip_is_sent_to_whoever_takes_it(accepted):
    assert accepts_gzip(accepted) is ACCEPTED[accepted]


@pytest.mark.parametrize(
    "given, tag, known",
    [
        ('"a"', '"a"', True), ('W/"a"', '"a"', True), ('"a"', 'W/"a"', True), ('"b", W/"a"', '"a"', True),
        ("*", '"a"', True), ('"aa"', '"a"', False), ("a", '"a"', False), ("", '"a"', False),
    ],
)  # fmt: skip
def test_tags_are_compared_weakly(given, tag, known):
    assert matches_tag(given, tag) is known


def test_a_packed_answer_has_another_tag_than_a_plain_one():
    prepared = Prepared.of(b'{"a": ' + b"1" * 2000 + b"}")
    plain, packed = HTTPHeaders(), HTTPHeaders()
    assert represent(prepared, HTTPHeaders(), plain) == prepared.body
    assert represent(prepared, HTTPHeaders({"Accept-Encoding": "gzip"}), packed) == prepared.packed
    assert packed["Etag"] == f"W/{plain['Etag']}" and packed["Content-Encoding"] == "gzip"
    assert plain["Content-Length"] == str(len(prepared.body)) != packed["Content-Length"]
    small = Prepared.of(b"{}")
    assert represent(small, HTTPHeaders({"Accept-Encoding": "gzip"}), HTTPHeaders()) == b"{}"


def logger_of(stream):
    made = logging.Logger("lines")
    handler = LineHandler(stream)
    handler.setFormatter(TextFormatter())
    made.addHandler(handler)
    return made


def test_lines_of_the_log_are_written_together_and_a_warning_at_once():
    stream = io.StringIO()
    log = logger_of(stream)
    log.info("without a loop")
    assert stream.getvalue().endswith("INFO lines without a loop\n")

    async def in_a_loop():
        log.info("first")
        assert "first" not in stream.getvalue()
        log.warning("second")
        assert "first" in stream.getvalue() and "second" in stream.getvalue()
        log.info("third")
        await asyncio.sleep(WAIT_SECONDS + 0.1)
        assert "third" in stream.getvalue()
        for number in range(MOST_WAITING):
            log.info("many %d", number)
        assert f"many {MOST_WAITING - 1}" in stream.getvalue()
        log.info("last")

    asyncio.run(in_a_loop())
    log.info("after its loop has ended")
    assert "last" in stream.getvalue() and "after its loop" in stream.getvalue(), "nothing waits for what is over"
    order = [line.rpartition(" lines ")[2] for line in stream.getvalue().splitlines()]
    assert order[:4] == ["without a loop", "first", "second", "third"]


def test_lines_of_the_audit_log_are_written_together_and_whole(tmp_path, monkeypatch):
    file = tmp_path / "audit.jsonl"
    log = AuditLog(str(file), "s", lambda: 1.5)

    async def in_a_loop():
        for number in range(3):
            log.write(n=number)
        assert not file.exists()
        await asyncio.sleep(FLUSH_SECONDS + 0.2)
        assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [0, 1, 2]
        log.write(n=3, name="größer")
        log.flush()
        assert json.loads(file.read_text().splitlines()[3]) | {"time": ""} == {
            "time": "", "service": "s", "n": 3, "name": "größer",
        }  # fmt: skip
        assert file.read_bytes().isascii()

    asyncio.run(in_a_loop())
    real = os.write

    def torn(descriptor, data):
        raise_after.append(data)
        if len(raise_after) == 2:
            raise OSError("no room")
        return real(descriptor, data[: len(data) // 2])

    raise_after: list[bytes] = []
    with monkeypatch.context() as patched:
        patched.setattr("tools.tornado_service.audit.os.write", torn)
        log.write(n=4)
    assert log.failures == 1
    log.write(n=5)
    assert json.loads(file.read_text().splitlines()[-1])["n"] == 5, "a line that was torn spoils no other"
