"""Servers under load, each a process of its own on the servers' core: a bare Tornado, and the product beside it.

``python -m benchmarks.servers bare FILE`` serves the bytes of a file; ``… product`` serves both services in front of a
simulated cluster. Each prints one line of JSON that says where, and ends when its input is closed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from benchmarks.load import server_core
from benchmarks.processes import process_of, until_closed
from benchmarks.stacks import SECRET
from diproxy.diproxy_server.config import GatewayConfig
from diproxy.diproxy_server.server import make_app as make_gateway
from metroculus.sources.registry.protocol import Credentials
from rest_api.rest_api_server.directory.model import Role
from simulator.server import Habits, Simulator
from simulator.world import DAY, make_world
from standalone.demo import serve_simulator
from standalone.running import single_machine, start
from tools.tornado_service.access import Access
from tools.tornado_service.listening import listen
from tools.tornado_service.logs import set_up

END = 1795219200
FOLDER = Path("build/bench-services")


def serving(*arguments: str) -> AbstractContextManager[dict[str, Any]]:
    """A server on the servers' core, and where it is."""
    return process_of("benchmarks.servers", *arguments)


NO_ASSETS = b'{"code": 200, "data": []}'
"""Where the bytes stand for an upstream's allocations, its assets are none."""


class Bare(RequestHandler):
    """What Tornado costs by itself: the same bytes, nothing decided."""

    body = b""

    def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(NO_ASSETS if self.request.path.endswith("/assets") else self.body)

    def compute_etag(self) -> None:
        return None


async def bare(body: bytes) -> None:
    Bare.body = body
    server = HTTPServer(Application([("/.*", Bare)], log_function=lambda handler: None))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    await until_closed({"url": f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"})


async def product() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    simulator = Simulator(make_world(seed=1, days=2, end=END), Habits(serves=frozenset({"kubecost"})), lambda: END)
    cluster, url = serve_simulator(simulator)
    plan = single_machine(
        FOLDER,
        SECRET,
        access=Access(audit_log=str(FOLDER / "audit.jsonl")),
        kubecost_api_url=url,
        kubecost_timeout=30.0,
        rounds=False,
    )
    running = start(plan)
    directory = running.rest_api.directory
    organization = directory.create_organization("bench")
    directory.create_user("bench")
    directory.set_role("bench", organization.id, Role.VIEWER)
    account = directory.create_cluster(organization.id, "bench", "kubecost", url).id
    dates = f"start_date={END - DAY}&end_date={END}"
    metroculus, rest_api = running.metroculus_listener.url, running.rest_api_listener.url
    where = {
        "healthz": f"{metroculus}/healthz",
        "statement": f"{metroculus}/metroculus/v2/kubecost_cluster_costs?cloud_account_id={account}&{dates}",
        "costs": f"{rest_api}/restapi/v2/kubecost/clusters/{account}/costs?{dates}",
        "token": directory.create_token("bench", None)[1],
    }
    await until_closed(where)
    cluster.stop()
    await running.stop()


async def gateway(receive_url: str) -> None:
    """Metroculus and a gateway before a receiver."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    access = Access(audit_log=str(FOLDER / "audit.jsonl"))
    running = start(single_machine(FOLDER, SECRET, access=access, rounds=False))
    account = str(uuid4())
    await running.metroculus.dependencies.registry.put(account, "push", "", Credentials())
    config = GatewayConfig(
        cluster_secret=SECRET,
        metroculus_url=running.metroculus_listener.url,
        thanos_receive_url=receive_url,
        access=access,
    )
    made = make_gateway(config)
    listener = listen(made.application, made.service, "127.0.0.1", 0)
    token = await asyncio.to_thread(made.calls.client.create_push_token, account)
    where = {"url": f"{listener.url}/storage/api/v2/write", "token": token[1]["push_token"], "pid": os.getpid()}
    await until_closed(where)
    await listener.stop()
    made.close()
    await running.stop()


if __name__ == "__main__":
    os.sched_setaffinity(0, {server_core()})
    set_up("info", "text")
    kind, given = sys.argv[1], sys.argv[2:]
    asyncio.run(bare(Path(given[0]).read_bytes()) if kind == "bare" else gateway(given[0]) if given else product())
