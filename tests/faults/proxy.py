"""Stands between us and an upstream and misbehaves as it is told, from one moment to the next."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes], bytes]
HEAD_END = b"\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


def answer(status: str, *headers: str, body: str = "") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", body]
    return "\r\n".join(head).encode()


class Proxy:
    """One upstream's stand-in. ``fault`` names what it does; None passes everything on.

    Args:
        port: the upstream's own, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.fault: str | None = None
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def become(self, fault: str | None) -> None:
        """Misbehave from now on; connections of before are cut, or frozen where the fault is to hang."""
        self.fault = fault
        if fault != "hang":
            for writer in list(self._open):
                writer.transport.abort()
        if fault == "refuse":
            await self.stop()
        elif self._server is None:
            await self.start()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            await self._play(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.fault
        if fault is None:
            await self._pass_on(reader, writer)
        elif fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "close":
            return
        elif fault in ("reset", "refuse"):  # the latter came in just before
            reset(writer)
        elif fault in CHANGES:
            await self._change(reader, writer, CHANGES[fault])
        elif fault in ("drip", "reset half way", "cut inside the header"):
            await self._mangle(reader, writer, fault)
        else:
            await reader.read(1)
            await SCRIPTS[fault](writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        self._open.add(back)
        pumps = {asyncio.ensure_future(self._pump(reader, back)), asyncio.ensure_future(self._pump(there, writer))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._open.discard(back)
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while part := await reader.read(1 << 16):
                while self.fault == "hang":  # noqa: ASYNC110  (the test that froze it ends it)
                    await asyncio.sleep(0.05)
                writer.write(part)
                await writer.drain()
        except OSError:
            return

    async def _mangle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> None:
        """The upstream's own answer, and not all of it, or not at once."""
        there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        asking = asyncio.ensure_future(self._pump(reader, back))
        try:
            first = await there.read(1 << 16)
            if fault == "cut inside the header":
                writer.write(first[:12])
                await writer.drain()
            elif fault == "reset half way":
                writer.write(first[: max(20, len(first) // 2)])
                await writer.drain()
                reset(writer)
            else:
                for byte in first:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.1)
        finally:
            asking.cancel()
            back.close()

    async def _change(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
        """The upstream's own answer with another body."""
        head = await reader.readuntil(HEAD_END)
        lines = [
            line
            for line in head.decode("latin-1").split("\r\n")
            if not line.lower().startswith(("accept-encoding:", "connection:"))
        ]
        there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        back.write("\r\n".join([lines[0], "Connection: close", *lines[1:]]).encode("latin-1"))
        received = await there.read(-1)
        back.close()
        body = received.partition(HEAD_END)[2]
        if not received.startswith(b"HTTP/1.1 200"):
            writer.write(received)
        else:
            if b"transfer-encoding: chunked" in received.partition(HEAD_END)[0].lower():
                body = dechunked(body)
            changed = change(body)
            writer.write(OK % len(changed) + changed)
        await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def dechunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(parts)


COST = re.compile(r"cost$|^cost$|^value$|^monthly_saving$", re.IGNORECASE)
NOT_COSTS = re.compile(r"hourlycost", re.IGNORECASE)


def costs_as(replacement: Any) -> Change:
    """Every cost of a Kubecost, OpenCost or Metroculus answer, and every sample of a Thanos one, as something else."""

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(one) for one in node]
        if not isinstance(node, dict):
            return node
        made = {}
        for key, one in node.items():
            if key == "value" and isinstance(one, list):
                made[key] = [one[0], sample(replacement)]
            elif key == "values" and isinstance(one, list):
                made[key] = [[at, sample(replacement)] for at, _ in one]
            elif COST.search(key) and isinstance(one, (int, float)):
                made[key] = replacement
            else:
                made[key] = walk(one)
        return made

    def sample(value: Any) -> Any:
        return value if value is None or isinstance(value, (list, dict)) else str(value)

    return lambda body: json.dumps(walk(json.loads(body))).encode()


def hour_off(body: bytes) -> bytes:
    """Every stamp an hour late, whichever way it is written."""

    def later(match: re.Match[str]) -> str:
        day, hour, rest = match[1], int(match[2]), match[3]
        return f"{day}T{(hour + 1) % 24:02d}{rest}"

    text = re.sub(r"(\d{4}-\d\d-\d\d)T(\d\d)(:\d\d:\d\dZ)", later, body.decode())
    return re.sub(r"\b17\d{8}\b", lambda stamp: str(int(stamp[0]) + 3600), text).encode()


def failed_inside(body: bytes) -> bytes:
    if b'"resultType"' in body or b'"status": "success"' in body:
        return b'{"status":"error","errorType":"internal","error":"down"}'
    return b'{"code":500,"status":"error","data":null,"message":"down"}'


def empty(body: bytes) -> bytes:
    if b'"resultType"' in body:
        kind = "matrix" if b'"matrix"' in body else "vector"
        return json.dumps({"status": "success", "data": {"resultType": kind, "result": []}}).encode()
    return b'{"code":200,"status":"success","data":[]}'


CHANGES: dict[str, Change] = {
    "truncated JSON": lambda body: body[: len(body) // 2],
    "wrong types": costs_as([{"cost": "text"}]),
    "costs of null": costs_as(None),
    "costs of NaN": costs_as(float("nan")),
    "costs of 1e308": costs_as(1e308),
    "negative costs": costs_as(-5.5),
    "code 500 inside a 200": failed_inside,
    "empty success": empty,
    "a clock an hour off": hour_off,
    "another shape": lambda body: b'[{"name": "shop", "cost": 1}]',
}


def said(data: bytes) -> Callable[[asyncio.StreamWriter], Any]:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return say


def poured(head: bytes, part: bytes, size: int, pause: float = 0.0) -> Callable[[asyncio.StreamWriter], Any]:
    async def pour(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range(size // len(part)):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    return pour


BOMB = gzip.compress(b" " * (300 << 20), 9)
LARGE = 300 << 20
SCRIPTS = {
    "401": said(answer("401 Unauthorized", body="{}")),
    "429": said(answer("429 Too Many Requests", "Retry-After: 1", body="{}")),
    "503 for six hours": said(answer("503 Service Unavailable", "Retry-After: 21600", body="{}")),
    "500": said(answer("500 Internal Server Error", body="oops")),
    "HTML with 200": said(answer("200 OK", "Content-Type: text/html", body="<html>log in</html>")),
    "redirect": said(answer("302 Found", "Location: http://169.254.169.254/latest/")),
    "204": said(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    "gzip bomb": said(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BOMB)
        + BOMB
    ),
    "300 MB body": poured(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % LARGE, b" " * (1 << 20), LARGE
    ),
    "endless body": poured(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\n    1\r\n", 5 << 20, pause=0.02
    ),
    "TLS instead of plain": said(b"\x15\x03\x03\x00\x02\x02\x28"),
    "noise": said(bytes(range(256)) * 16),
}
RAW = ("refuse", "close", "reset", "hang", "drip", "reset half way", "cut inside the header", *SCRIPTS)
FAULTS = (*RAW, *CHANGES)
