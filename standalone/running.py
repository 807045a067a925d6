"""Both services and the worker in one process, wired to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metroculus.config import MetroculusConfig, WorkerConfig
from metroculus.dependencies import make_dependencies
from metroculus.metroculus_api.server import Metroculus
from metroculus.metroculus_api.server import make_app as make_metroculus
from metroculus.metroculus_worker.server import WorkerService, make_worker
from metroculus.sources.outbound.addresses import AllowedAddresses
from rest_api.rest_api_server.config import RestApiConfig
from rest_api.rest_api_server.server import RestApi
from rest_api.rest_api_server.server import make_app as make_rest_api
from tools.tornado_service.access import Access
from tools.tornado_service.listening import Listener, listen

CALL_MARGIN_SECONDS = 5.0
"""The REST API waits so much longer than Metroculus does, to hear why."""


@dataclass
class Running:
    """Two services that listen, and a worker; ``stop`` lets what is in flight finish."""

    metroculus: Metroculus
    rest_api: RestApi
    metroculus_listener: Listener
    rest_api_listener: Listener
    worker: WorkerService | None = None
    worker_listener: Listener | None = None

    def begin(self) -> None:
        """Go on the rounds: the worker's, where there is one, and the REST API's own."""
        if self.worker is not None:
            self.worker.start()
        self.rest_api.start()

    async def stop(self) -> None:
        if self.worker is not None:
            await self.worker.stop()
        if self.worker_listener is not None:
            await self.worker_listener.stop()
        await self.rest_api_listener.stop()
        await self.metroculus_listener.stop()
        self.rest_api.close()
        self.metroculus.close()


@dataclass(frozen=True)
class Plan:
    """What to run; what is left out takes the default of a single machine."""

    data_dir: Path
    secret: str
    metroculus_listen: tuple[str, int] = ("127.0.0.1", 0)
    rest_api_listen: tuple[str, int] = ("127.0.0.1", 0)
    kubecost_api_url: str | None = None
    kubecost_account_id: str | None = None
    kubecost_flavour: str | None = None
    thanos_query_url: str | None = None
    tenant_label: str = "tenant_id"
    upstream_allow: AllowedAddresses = AllowedAddresses()  # noqa: RUF009  (immutable, and allows nothing)
    timeout: float = 30.0
    cache_ttl: float = 300.0
    clock: Callable[[], float] | None = None
    clickhouse_url: str | None = None
    """None keeps no history."""
    rounds: bool = True
    """Whether the worker goes on its rounds by itself, where there is one."""
    worker_listen: tuple[str, int] = ("127.0.0.1", 0)
    directory_url: str | None = None
    """None is a file in ``data_dir``."""
    access: Access = field(default_factory=Access)


def start(plan: Plan) -> Running:
    """Wire and listen; call on the loop.

    Raises:
        OSError: an address is taken.
        RegistryError, DirectoryError: the data folder cannot be used.
    """
    more: dict[str, Any] = {"clock": plan.clock} if plan.clock else {}
    config = MetroculusConfig(
        cluster_secret=plan.secret,
        listen=plan.metroculus_listen,
        thanos_query_url=plan.thanos_query_url,
        tenant_label=plan.tenant_label,
        kubecost_api_url=plan.kubecost_api_url,
        kubecost_account_id=plan.kubecost_account_id,
        kubecost_timeout=plan.timeout,
        cache_ttl=plan.cache_ttl,
        upstream_allow=plan.upstream_allow,
        data_dir=plan.data_dir,
        kubecost_flavour=plan.kubecost_flavour,
        clickhouse_url=plan.clickhouse_url,
        worker=WorkerConfig(listen=plan.worker_listen),
        access=plan.access,
    )
    dependencies = make_dependencies(config, **more)
    worker = make_worker(config, dependencies, **more) if dependencies.store is not None else None
    metroculus = make_metroculus(config, dependencies=dependencies, worked=worker is not None, **more)
    first = listen(metroculus.application, metroculus.service, *plan.metroculus_listen)
    rest_api = make_rest_api(
        RestApiConfig(
            cluster_secret=plan.secret,
            listen=plan.rest_api_listen,
            metroculus_url=first.url,
            directory_url=plan.directory_url,
            data_dir=plan.data_dir,
            access=plan.access,
            call_seconds=plan.timeout + CALL_MARGIN_SECONDS,
        ),
        **more,
    )
    second = listen(rest_api.application, rest_api.service, *plan.rest_api_listen)
    running = Running(metroculus, rest_api, first, second, worker)
    if worker is not None:
        running.worker_listener = listen(worker.application, worker.service, *plan.worker_listen)
    if plan.rounds:
        running.begin()
    return running
