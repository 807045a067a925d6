"""What tests of pushing share: a gateway, agents and their clusters on one loop, over one clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
from prometheus_client import CollectorRegistry

from diproxy.diproxy_server.config import GatewayConfig
from diproxy.diproxy_server.server import Gateway, make_app
from metroculus.cost_model.allocation import Filters
from metroculus.metroculus_agent.agent import Agent
from metroculus.metroculus_agent.gateway import Gateway as Delivery
from metroculus.metroculus_agent.metrics import AgentMetrics
from metroculus.metroculus_agent.server import AskedUpstream
from metroculus.sources.kubecost.client import Flavour, KubecostSource
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.outbound.http import SourceHttp, Upstream
from metroculus.sources.registry.protocol import Credentials
from simulator.server import Habits, Simulator
from simulator.world import World
from standalone.running import Running
from tests.integration.test_history import Clock
from tests.support import DAY, NOW, SECRET, Stack
from tools.tornado_service.access import Access
from tools.tornado_service.listening import listen


@dataclass
class Pusher:
    """One cluster that pushes: its account, its simulator, its agent."""

    account: str
    world: World
    simulator: Simulator
    url: str
    flavour: Flavour
    token_file: Path
    agent: Agent
    http: SourceHttp

    def true(self, start: int, end: int, now: float = NOW) -> Any:
        from simulator.costs import truth

        return truth(self.world, start, end, now=int(now), adjusted=self.flavour == "kubecost")


@dataclass
class Door:
    """Metroculus with a worker whose rounds the test makes, and a gateway before it."""

    stack: Stack
    clock: Clock = field(default_factory=Clock)
    plan: dict[str, Any] = field(default_factory=dict)
    receive_url: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = {"clickhouse_url": f"embedded:{self.stack.folder / 'store'}"} | self.plan
        self.running: Running = self.stack.start(clock=self.clock, **plan)
        self.gateway, self.listener, self.url = self.open_gateway()

    def open_gateway(self, metroculus_url: str | None = None) -> tuple[Gateway, Any, str]:
        config = GatewayConfig(
            cluster_secret=SECRET,
            metroculus_url=metroculus_url or self.running.metroculus_listener.url,
            thanos_receive_url=self.receive_url,
            access=Access(bad_tokens_a_minute=9999),
            **self.limits,
        )

        def opened() -> tuple[Gateway, Any]:
            gateway = make_app(config, self.clock)
            return gateway, listen(gateway.application, gateway.service, "127.0.0.1", 0)

        gateway, listener = self.stack.thread.call(opened)
        return gateway, listener, listener.url

    def part(self, name: str) -> Any:
        """What the gateway's door of metrics was made with: ``gate``, ``budget``, ``in_flight`` …"""
        return self.gateway.application.wildcard_router.rules[0].target_kwargs[name]

    def close(self) -> None:
        self.stack.thread.run(self.listener.stop())
        self.stack.thread.call(self.gateway.close)

    def link(self, account: str | None = None) -> tuple[str, str]:
        """An account that pushes, and its token."""
        account = account or str(uuid4())
        registry = self.running.metroculus.dependencies.registry
        self.stack.thread.run(registry.put(account, "push", "", Credentials()))
        return account, self.renewed(account)

    def renewed(self, account: str) -> str:
        answer = self.metroculus("POST", f"push_tokens/{account}")
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["push_token"]
        return token

    def metroculus(self, method: str, path: str, **more: Any) -> requests.Response:
        url = f"{self.running.metroculus_listener.url}/metroculus/v2/{path}"
        headers = {"Secret": SECRET} | more.pop("headers", {})
        return requests.request(method, url, headers=headers, timeout=60, **more)

    def push(self, method: str, path: str, token: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} | more.pop("headers", {})
        return requests.request(method, f"{self.url}{path}", headers=headers, timeout=60, **more)

    def pusher(
        self, world: World, flavour: Flavour = "kubecost", habits: Habits | None = None, beside: Pusher | None = None
    ) -> Pusher:
        """A cluster with an account of its own, or with that of another one."""
        simulator, url = self.stack.simulate(world, habits or Habits(serves=frozenset({flavour})), self.clock)
        if beside is not None:
            account, token_file = beside.account, beside.token_file
        else:
            account, token = self.link()
            token_file = self.stack.folder / f"{account}.token"
            token_file.write_text(token)
        return self.stack.thread.call(self._agent, account, world, simulator, url, flavour, token_file)

    def _agent(
        self, account: str, world: World, simulator: Simulator, url: str, flavour: Flavour, token_file: Path
    ) -> Pusher:
        http = SourceHttp(AllowedAddresses(), 30.0)
        source = KubecostSource(http, Upstream("the cost source", url, trusted=True), flavour, self.clock)
        delivery = Delivery(self.url, account, token_file)
        metrics = AgentMetrics(CollectorRegistry(), self.clock)
        agent = Agent(AskedUpstream(source, flavour, 30.0), delivery, metrics, self.clock)
        return Pusher(account, world, simulator, url, flavour, token_file, agent, http)

    def pushed(self, *pushers: Pusher) -> int:
        """A round of each agent; how many answers were pushed."""
        return sum(self.stack.thread.run(one.agent.round()) for one in pushers)

    def worked(self) -> None:
        """The worker looks into the inbox, and makes a round."""
        worker: Any = self.running.worker.worker  # type: ignore[union-attr]

        async def work() -> None:
            await worker.extract_all()
            await worker.look_into_inbox()
            await worker.extract_all()

        self.stack.thread.run(work())

    @property
    def store(self) -> Any:
        return self.running.metroculus.dependencies.store

    def hours(self, account: str) -> dict[int, Any]:
        """The committed hours of an account."""
        return dict(self.store.ledger.committed(account, NOW - 60 * DAY, NOW + 60 * DAY).hours)

    def total(self, account: str, start: int, end: int) -> float:
        """USD that is stored, management and all."""
        committed = self.store.ledger.committed(account, start, end)
        told, management = self.store.history.allocations(committed, ("pod",))
        assert not committed.passed_over
        return fsum([*(a.costs.total for a in told.allocations), management or 0.0])

    def expenses(self, account: str, start: int, end: int) -> float:
        sums = self.store.summaries.sums(account, start, end, ("hour",), Filters()).sums
        return fsum(usd for one in sums for usd in one.costs.by_component())
