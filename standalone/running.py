"""Both services and the worker in one process, wired to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metroculus.config import MetroculusConfig, WorkerConfig
from metroculus.dependencies import make_dependencies
from metroculus.metroculus_api.server import Metroculus
from metroculus.metroculus_api.server import make_app as make_metroculus
from metroculus.metroculus_worker.server import WorkerService, make_worker
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


FREE_PORT = ("127.0.0.1", 0)


@dataclass(frozen=True)
class Plan:
    """What to run: the settings of both services; ``rest_api`` is told where Metroculus listens once it does."""

    metroculus: MetroculusConfig
    rest_api: RestApiConfig
    clock: Callable[[], float] | None = None
    rounds: bool = True
    """Whether the worker goes on its rounds by itself, where there is a store to keep history in."""


def single_machine(
    data_dir: Path,
    secret: str,
    *,
    rest_api_listen: tuple[str, int] = FREE_PORT,
    directory_url: str | None = None,
    access: Access | None = None,
    clock: Callable[[], float] | None = None,
    rounds: bool = True,
    **settings: Any,
) -> Plan:
    """Both services on one machine: one secret, one folder, ports of 127.0.0.1 that are free unless said.

    Args:
        settings: of ``MetroculusConfig``, where they are not its defaults.
    """
    shared: dict[str, Any] = {"cluster_secret": secret, "data_dir": data_dir, "access": access or Access()}
    free: dict[str, Any] = {"listen": FREE_PORT, "worker": WorkerConfig(listen=FREE_PORT)}
    metroculus = MetroculusConfig(**shared | free | settings)
    rest_api = RestApiConfig(
        **shared,
        listen=rest_api_listen,
        directory_url=directory_url,
        call_seconds=metroculus.kubecost_timeout + CALL_MARGIN_SECONDS,
    )
    return Plan(metroculus, rest_api, clock, rounds)


def start(plan: Plan) -> Running:
    """Wire and listen; call on the loop.

    Raises:
        OSError: an address is taken.
        RegistryError, DirectoryError: the data folder cannot be used.
    """
    more: dict[str, Any] = {"clock": plan.clock} if plan.clock else {}
    config = plan.metroculus
    dependencies = make_dependencies(config, **more)
    worker = make_worker(config, dependencies, **more) if dependencies.store is not None else None
    metroculus = make_metroculus(config, dependencies=dependencies, worked=worker is not None, **more)
    first = listen(metroculus.application, metroculus.service, *config.listen)
    rest_api = make_rest_api(replace(plan.rest_api, metroculus_url=first.url), **more)
    second = listen(rest_api.application, rest_api.service, *plan.rest_api.listen)
    running = Running(metroculus, rest_api, first, second, worker)
    if worker is not None:
        running.worker_listener = listen(worker.application, worker.service, *config.worker.listen)
    if plan.rounds:
        running.begin()
    return running
