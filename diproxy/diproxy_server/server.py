"""The gateway's wiring: the one place where its parts are put together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from prometheus_client import Counter as Count
from tornado.web import Application

from diproxy.diproxy_server.calls import Calls
from diproxy.diproxy_server.config import GatewayConfig
from diproxy.diproxy_server.errors import CODES, map_error
from diproxy.diproxy_server.gate import TokenGate
from diproxy.diproxy_server.handlers import Answers, RemoteWrite, Wanted
from diproxy.diproxy_server.receiver import Receiver
from diproxy.diproxy_server.remote_write import Limits
from optscale_client.metroculus_client import Client
from tools.http_client import authorities
from tools.tornado_service.application import Route, make_application
from tools.tornado_service.service import Service
from tools.tornado_service.uploads import UploadBudget
from tools.version import VERSION

WRITE_PATH = "/storage/api/v2/write"
PUSH_PATHS = "/push/v2/"
UNPACKED = 4
"""A body of metrics may unpack to so many times what it may have packed."""
CHECKERS = 2
"""Threads that check bodies of metrics."""
ROOM = 8
"""So many bodies of the largest size are held at once, unpacked ones counted with what they unpack to."""


@dataclass
class Gateway:
    """A wired service; ``close`` gives back what it holds."""

    application: Application
    service: Service
    calls: Calls
    receiver: Receiver
    checkers: ThreadPoolExecutor

    def close(self) -> None:
        self.checkers.shutdown(wait=False, cancel_futures=True)
        self.calls.close()
        self.receiver.close()


def make_app(config: GatewayConfig, clock: Callable[[], float] = time.time) -> Gateway:
    """Put the service together.

    Raises:
        OSError: where the audit log cannot be written.
    """
    client = Client(
        url=config.metroculus_url, secret=config.cluster_secret or "", verify=authorities(config.metroculus_ca)
    )
    calls = Calls(client)
    receiver = Receiver(config.thanos_receive_url, config.thanos_receive_ca)
    service = Service(
        "diproxy",
        VERSION,
        CODES,
        lambda: {"metroculus": calls.seen, "receiver": receiver.seen},
        map_error,
        clock,
        security={"push token": {"type": "http", "scheme": "bearer"}},
        audit=config.access.audit("diproxy", clock),
        proxies=config.access.proxies,
    )
    samples = Count("diproxy_samples", "Samples that the receiver has taken", registry=service.registry)
    checkers = ThreadPoolExecutor(CHECKERS, thread_name_prefix="bodies")
    budget = UploadBudget(ROOM * config.push_max_bytes, config.push_max_bytes)
    parts: dict[str, Any] = {
        "gate": TokenGate(calls),
        "slowdown": config.access.slowdown(),
        "in_flight": Counter(),
    }
    metrics = parts | {
        "receiver": receiver,
        "limits": Limits(config.push_max_series, config.push_max_samples),
        "tenant_label": config.tenant_label,
        "most_unpacked": UNPACKED * config.push_max_bytes,
        "samples": samples,
        "checkers": checkers,
        "checking": WeakValueDictionary(),
        "budget": budget,
    }
    answer = r"/push/v2/answers/(?P<kind>[^/]+)/(?P<start>[^/]+)/(?P<end>[^/]+)/(?P<step>[^/]+)"
    routes: list[Route] = [
        (WRITE_PATH, RemoteWrite, metrics),
        (r"/push/v2/wanted", Wanted, parts | {"calls": calls}),
        (answer, Answers, parts | {"calls": calls, "budget": budget}),
    ]
    uploads = {WRITE_PATH: config.push_max_bytes, PUSH_PATHS: config.push_max_bytes}
    return Gateway(make_application(service, routes, uploads), service, calls, receiver, checkers)
