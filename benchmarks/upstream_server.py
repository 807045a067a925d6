"""Simulated Kubecosts in a process of their own: every cluster's has a path of its own, ``URL/<cluster>``.

An answer is worked out once for all clusters, and then costs nothing. All of them answer after a delay; any of them can
be made silent: it takes requests, and never answers.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.request import Request, urlopen

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from benchmarks.processes import process_of, until_closed
from simulator.server import Habits, Simulator
from simulator.world import DAY, World, make_world
from standalone.demo import serve_simulator
from tools.tornado_service.logs import set_up

END = 1795219200
DAYS = 4


class UpstreamServer:
    """The process as its parent sees it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url_of(self, cluster: str) -> str:
        return f"{self._url}/{cluster}"

    def set_clock(self, now: int) -> None:
        self._put(f"clock/{now}")

    def silence(self, clusters: list[str]) -> None:
        """These are silent from now on, and no others."""
        self._put(f"silent/{','.join(clusters)}")

    def _put(self, path: str) -> None:
        with urlopen(Request(f"{self._url}/control/{path}", method="PUT"), timeout=30):
            pass


@contextmanager
def upstreams(copies: int = 1, delay: float = 0.0, days: int = DAYS) -> Iterator[UpstreamServer]:
    """Run them until the block ends.

    Args:
        copies: pods that each of the simulated cluster's is split into.
        delay: seconds before an answer.
        days: before ``END``, of which the cluster has costs.
    """
    with process_of("benchmarks.upstream_server", str(copies), str(delay), str(days)) as where:
        yield UpstreamServer(where["url"])


class _Upstream:
    """A simulated Kubecost that works an answer out once, for all clusters."""

    def __init__(self, copies: int, delay: float, days: int) -> None:
        self.now = END - days * DAY
        self.delay = delay
        self.silent: set[str] = set()
        self.kept: dict[str, asyncio.Task[tuple[int, bytes]]] = {}
        world = of_many_pods(make_world(seed=3, days=days, end=END), copies)
        simulator = Simulator(world, Habits(serves=frozenset({"kubecost"})), lambda: self.now)
        self._server, self.url = serve_simulator(simulator)

    async def answer(self, uri: str) -> tuple[int, bytes]:
        if uri not in self.kept:
            self.kept[uri] = asyncio.create_task(self._work_out(uri))
        return await asyncio.shield(self.kept[uri])

    async def _work_out(self, uri: str) -> tuple[int, bytes]:
        got = await AsyncHTTPClient().fetch(HTTPRequest(f"{self.url}{uri}", request_timeout=60), raise_error=False)
        return got.code, got.body


def of_many_pods(world: World, copies: int) -> World:
    """The same cluster, each container in several smaller ones."""
    pods = [
        replace(
            one,
            pod=f"{one.pod}-{number}",
            cpu_request=one.cpu_request / copies,
            ram_request_gib=one.ram_request_gib / copies,
            cpu_usage=one.cpu_usage / copies,
            ram_usage_gib=one.ram_usage_gib / copies,
        )
        for one in world.containers
        for number in range(copies)
    ]
    return replace(world, containers=tuple(pods))


class _Answer(RequestHandler):
    upstream: _Upstream

    async def get(self, cluster: str, uri: str) -> None:
        upstream = self.upstream
        if cluster in upstream.silent:
            await asyncio.Event().wait()
        question = uri + (f"?{self.request.query}" if self.request.query else "")
        (status, body), _ = await asyncio.gather(upstream.answer(question), asyncio.sleep(upstream.delay))
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(body)


class _Clock(RequestHandler):
    upstream: _Upstream

    def put(self, now: str) -> None:
        self.upstream.now = int(now)
        self.upstream.kept.clear()


class _Silence(RequestHandler):
    upstream: _Upstream

    def put(self, clusters: str) -> None:
        self.upstream.silent = set(clusters.split(","))


async def _serve(copies: int, delay: float, days: int) -> None:
    set_up("error", "text")
    _Answer.upstream = _Clock.upstream = _Silence.upstream = _Upstream(copies, delay, days)
    routes = [
        (r"/control/clock/([0-9]+)", _Clock),
        (r"/control/silent/(.*)", _Silence),
        (r"/([^/]+)(/.*)", _Answer),
    ]
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(Application(routes, log_function=lambda handler: None)).add_sockets(sockets)
    await until_closed({"url": f"http://127.0.0.1:{sockets[0].getsockname()[1]}"})


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
