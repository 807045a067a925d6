"""The one way out, against servers that misbehave on the wire."""

from __future__ import annotations

import asyncio
import gzip
import time

import pytest

from metroculus.sources.errors import BadAnswer, DeadlineExceeded, SourceError, Unreachable
from metroculus.sources.outbound import http as source_http
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.outbound.http import SourceHttp, Upstream
from tools.deadline import Deadline

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class RawServer:
    """Writes bytes as told, one script a connection."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in script:
                if isinstance(part, float):
                    await asyncio.sleep(part)
                elif part is None:
                    writer.transport.abort()
                    return
                else:
                    writer.write(part)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def fetch(*scripts, seconds=1.5, calls=1):
    """What each call came to, how long they took, and how many connections were made."""

    async def work():
        client = SourceHttp(AllowedAddresses())
        async with RawServer(*scripts) as server:
            upstream = Upstream("the source", server.url, trusted=True)
            outcomes = []
            began = time.monotonic()
            for _ in range(calls):
                try:
                    outcomes.append(await client.get(upstream, "/x", {}, Deadline(seconds)))
                except SourceError as failure:
                    outcomes.append(failure)
            took = time.monotonic() - began
        client.close()
        return outcomes, took, server.connections

    return asyncio.run(work())


def drip(text, pause=0.15):
    return [part for byte in text for part in (bytes([byte]), pause)]


def status(line, *headers, body=b""):
    head = b"\r\n".join([b"HTTP/1.1 " + line, *headers, b"Content-Length: %d" % len(body), b"Connection: close"])
    return head + b"\r\n\r\n" + body


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ENDLESS = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"5\r\n    1\r\n", 0.05] * 200]
OUTCOMES = {
    "accept then reset": ([None], Unreachable),
    "reset in the header": ([OK[:20], 0.05, None], Unreachable),
    "reset in the body": ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", 0.05, None], Unreachable),
    "accept then silence": ([30.0], DeadlineExceeded),
    "end inside the header": ([b"HTTP/1.1 200 OK\r\nContent-Le"], Unreachable),
    "header drips": (drip(OK), DeadlineExceeded),
    "body drips": ([b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n", *drip(b" " * 40)], DeadlineExceeded),
    # The client itself gives up after some of them; whether the retries still fit decides which of the two it is.
    "endless 100-continue": ([part for _ in range(200) for part in (CONTINUE, 0.05)], (DeadlineExceeded, Unreachable)),
    "endless chunks": (ENDLESS, DeadlineExceeded),
    "shorter than it says": ([b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"], Unreachable),
    "204": ([status(b"204 No Content")], BadAnswer),
    "206": ([status(b"206 Partial Content", body=b"{}")], BadAnswer),
    "301 elsewhere": ([status(b"301 Moved", b"Location: http://127.0.0.1:1/")], BadAnswer),
    "302 to metadata": ([status(b"302 Found", b"Location: http://169.254.169.254/")], BadAnswer),
    "401": ([status(b"401 Unauthorized")], BadAnswer),
    "403": ([status(b"403 Forbidden")], BadAnswer),
    "404": ([status(b"404 Not Found")], BadAnswer),
    "413": ([status(b"413 Too Large")], BadAnswer),
    "429 for six hours": ([status(b"429 Slow", b"Retry-After: 21600")], BadAnswer),
    "500": ([status(b"500 Oops")], BadAnswer),
    "502": ([status(b"502 Bad Gateway")], BadAnswer),
    "503 with a past date": ([status(b"503 No", b"Retry-After: Thu, 01 Jan 1970 00:00:00 GMT")], BadAnswer),
    "503 soon": ([status(b"503 No", b"Retry-After: soon")], BadAnswer),
    "503 in an age": ([status(b"503 No", b"Retry-After: 1000000000")], BadAnswer),
    "gzip that is cut": (
        [status(b"200 OK", b"Content-Encoding: gzip", body=gzip.compress(b"{}" * 99)[:-9])],
        BadAnswer,
    ),
    "gzip six times": ([status(b"200 OK", b"Content-Encoding: " + b"gzip," * 5 + b"gzip", body=b"{}")], BadAnswer),
    "another encoding": ([status(b"200 OK", b"Content-Encoding: br", body=b"{}")], BadAnswer),
    "gzip on a plain body": ([status(b"200 OK", b"Content-Encoding: gzip", body=b"{}")], SourceError),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_an_upstream_that_misbehaves_is_told_by_kind_and_in_time(name):
    script, kind = OUTCOMES[name]
    (outcome,), took, _ = fetch(script)
    assert isinstance(outcome, kind), outcome
    assert took < 1.5 + 0.5
    assert "127.0.0.1" not in str(outcome)


def test_a_good_answer_is_a_good_answer():
    (outcome,), _, connections = fetch([OK])
    assert outcome == b"{}" and connections == 1


def test_a_refused_connection_is_unreachable_and_tried_three_times():
    async def work():
        client = SourceHttp(AllowedAddresses())
        async with RawServer([OK]) as server:
            url = server.url
        began = time.monotonic()
        with pytest.raises(Unreachable):
            await client.get(Upstream("s", url, trusted=True), "/", {}, Deadline(5))
        client.close()
        return time.monotonic() - began

    assert asyncio.run(work()) < 3


def test_what_may_be_retried_is_retried_twice_and_a_flap_is_forgiven():
    (outcome,), _, connections = fetch([status(b"503 No")], [OK])
    assert outcome == b"{}" and connections == 2
    (outcome,), _, connections = fetch([status(b"503 No")], seconds=5)
    assert isinstance(outcome, BadAnswer) and connections == 3
    (outcome,), _, connections = fetch([status(b"500 Oops")])
    assert isinstance(outcome, BadAnswer) and connections == 1


def test_in_an_outage_there_is_no_storm_and_the_breaker_opens():
    outcomes, _, connections = fetch([status(b"503 No")], calls=40, seconds=5)
    assert all(isinstance(outcome, SourceError) for outcome in outcomes)
    assert any("left alone" in str(outcome) for outcome in outcomes)
    assert connections <= 1.2 * 40


def test_the_breaker_lets_a_probe_through_and_closes_again():
    now = [0.0]
    health = source_http._Health(clock=lambda: now[0])
    for _ in range(10):
        health.admit()
        health.record(False)
    with pytest.raises(Unreachable):
        health.admit()
    now[0] += 5
    health.admit()
    with pytest.raises(Unreachable):
        health.admit()
    health.record(True)
    health.admit()


def test_silence_opens_the_breaker_however_far_apart_its_calls_are():
    now = [0.0]
    health = source_http._Health(clock=lambda: now[0])
    for number in range(source_http.LATE_IN_A_ROW):
        health.admit()
        now[0] += 30
        health.record(False, late=True)
        if number == 2:
            health.record(True)  # one that answers begins the count anew
    assert health.open_since is None
    for _ in range(3):
        health.admit()
        now[0] += 30
        health.record(False, late=True)
    with pytest.raises(Unreachable):
        health.admit()
    now[0] += source_http.PROBE_SECONDS
    health.admit()
    health.record(True)
    health.admit()


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(source_http, "MAX_BODY_BYTES", 1 << 20)
    bomb = gzip.compress(b" " * (64 << 20))
    (outcome,), took, _ = fetch([status(b"200 OK", b"Content-Encoding: gzip", body=bomb)], seconds=5)
    assert isinstance(outcome, BadAnswer) and "MiB" in str(outcome)
    assert took < 3


def test_a_hanging_upstream_does_not_make_another_wait():
    async def work():
        client = SourceHttp(AllowedAddresses())
        async with RawServer([30.0]) as hanging, RawServer([OK]) as healthy:
            stuck = [
                asyncio.create_task(client.get(Upstream("h", hanging.url, trusted=True), "/", {}, Deadline(3)))
                for _ in range(20)
            ]
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await client.get(Upstream("s", healthy.url, trusted=True), "/", {}, Deadline(3))
            took = time.monotonic() - began
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        client.close()
        return took, hanging.connections

    took, connections = asyncio.run(work())
    assert took < 0.5 and connections <= 8


def test_a_tenants_url_reaches_only_what_the_operator_allows():
    async def work(allowed):
        client = SourceHttp(AllowedAddresses(allowed))
        async with RawServer([OK]) as server:
            try:
                return await client.get(Upstream("s", server.url), "/", {}, Deadline(2)), server.connections
            except Unreachable as failure:
                return str(failure), server.connections
            finally:
                client.close()

    assert asyncio.run(work(["127.0.0.0/8"])) == (b"{}", 1)
    refused, connections = asyncio.run(work([]))
    assert "not allowed" in refused and connections == 0


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    (outcome,), _, _ = fetch([OK])
    assert outcome == b"{}"


def test_accounts_that_name_one_url_share_no_breaker():
    async def work():
        client = SourceHttp(AllowedAddresses())
        async with RawServer([status(b"500 Oops")], *[[status(b"500 Oops")]] * 14, [OK]) as server:
            mine, theirs = (Upstream("s", server.url, trusted=True, owner=owner) for owner in ("mine", "theirs"))
            for _ in range(15):
                with pytest.raises(SourceError):
                    await client.get(theirs, "/", {}, Deadline(5))
            with pytest.raises(Unreachable, match="left alone"):
                await client.get(theirs, "/", {}, Deadline(5))
            server.connections = 99
            found = await client.get(mine, "/", {}, Deadline(5))
        client.close()
        return found

    assert asyncio.run(work()) == b"{}"
