"""The agent's wiring."""

from __future__ import annotations

import asyncio
import ctypes
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tornado.web import Application

from metroculus.codes import CODES
from metroculus.metroculus_agent.agent import POLL_SECONDS, Agent
from metroculus.metroculus_agent.gateway import Gateway, Wanted
from metroculus.metroculus_agent.metrics import AgentMetrics
from metroculus.sources.errors import BadAnswer
from metroculus.sources.kubecost.client import Flavour, KubecostSource
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.outbound.http import SourceHttp, Upstream
from tools.deadline import Deadline
from tools.tornado_service.application import make_application
from tools.tornado_service.service import Service
from tools.version import VERSION

CURRENCY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What an agent is told; ``seconds`` is for one call to the upstream."""

    flavour: Flavour
    upstream_url: str
    to: str
    account: str
    token_file: Path
    ca_file: str | None = None
    listen: tuple[str, int] = ("127.0.0.1", 8936)
    seconds: float = 120.0
    poll_seconds: float = POLL_SECONDS
    currency: str | None = None
    """What its money is in, whatever the upstream says."""


class AskedUpstream:
    """The cluster's Kubecost or OpenCost over HTTP."""

    def __init__(self, source: KubecostSource, flavour: Flavour, seconds: float, currency: str | None = None) -> None:
        self._currency = currency
        self.one_by_one = flavour == "opencost"
        self._source = source
        self._seconds = seconds

    async def ask(self, wanted: Wanted) -> bytes:
        """Raises: SourceError"""
        if wanted.kind not in ("allocation", "assets") or wanted.step not in ("hour", "day"):
            raise BadAnswer("this agent is older than the gateway, and does not know what is wanted")
        kind = cast(Literal["allocation", "assets"], wanted.kind)
        step = cast(Literal["hour", "day"], wanted.step)
        deadline = Deadline(self._seconds)
        return await self._source.body(kind, wanted.start, wanted.end, step, wanted.aggregate, deadline)

    async def currency(self) -> str | None:
        """As the operator says, or as the upstream said within the hour.

        Raises:
            SourceError: it never said, and cannot be asked now.
        """
        return self._currency or await self._source.currency(Deadline(min(self._seconds, CURRENCY_SECONDS)))


@dataclass
class AgentService:
    """A wired agent; ``run`` pushes until it is cancelled, ``close`` gives back what it holds."""

    application: Application
    service: Service
    agent: Agent
    http: SourceHttp
    gateway: Gateway

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.agent.run())

    def close(self) -> None:
        self.http.close()
        self.gateway.close()


def _release_memory() -> None:
    """Give freed memory back to the system: glibc keeps it otherwise; other C libraries do not."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def make_agent(config: AgentConfig) -> AgentService:
    """Put the agent together."""
    service = Service("metroculus-agent", VERSION, CODES, lambda: metrics.states)
    metrics = AgentMetrics(service.registry, time.time)
    http = SourceHttp(AllowedAddresses(), config.seconds)
    upstream = Upstream("the cost source", config.upstream_url, trusted=True)
    source = KubecostSource(http, upstream, config.flavour, time.time)
    gateway = Gateway(config.to, config.account, config.token_file, config.ca_file)
    asked = AskedUpstream(source, config.flavour, config.seconds, config.currency)
    agent = Agent(asked, gateway, metrics, time.monotonic, config.poll_seconds, release_memory=_release_memory)
    return AgentService(make_application(service, []), service, agent, http, gateway)
