"""The REST API's wiring: the one place where its parts are put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tornado.web import Application

from optscale_client.metroculus_client import Client
from rest_api.rest_api_server.auth import Gate
from rest_api.rest_api_server.config import RestApiConfig
from rest_api.rest_api_server.controllers.alerts import AlertsController
from rest_api.rest_api_server.controllers.backfills import BackfillsController
from rest_api.rest_api_server.controllers.budgets import BudgetsController
from rest_api.rest_api_server.controllers.changes import ChangesController
from rest_api.rest_api_server.controllers.chargeback import ChargebackController
from rest_api.rest_api_server.controllers.clusters import ClustersController
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.controllers.expenses import ExpensesController
from rest_api.rest_api_server.controllers.live import LiveController
from rest_api.rest_api_server.controllers.metrics import MetricsController
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.controllers.organizations import OrganizationsSync
from rest_api.rest_api_server.controllers.resources import ResourcesController
from rest_api.rest_api_server.controllers.sources import SourcesSweep
from rest_api.rest_api_server.directory.connect import open_directory
from rest_api.rest_api_server.directory.model import Directory
from rest_api.rest_api_server.errors import CODES, map_error
from rest_api.rest_api_server.exports.files import Files
from rest_api.rest_api_server.kept import KeptAnswers, KeptCollector
from rest_api.rest_api_server.pages.base import NoPage
from rest_api.rest_api_server.urls import routes
from tools.http_client import authorities
from tools.tornado_service.application import make_application
from tools.tornado_service.cross_origin import CrossOrigin
from tools.tornado_service.service import Service
from tools.version import VERSION

DIRECTORY_THREADS = 8


@dataclass
class RestApi:
    """A wired service; ``close`` gives back what it holds."""

    application: Application
    service: Service
    directory: Directory
    metroculus: MetroculusPool
    resources: ResourcesController
    threads: ThreadPoolExecutor
    answers: KeptAnswers
    sweep: SourcesSweep
    organizations: OrganizationsSync
    running: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Keep what clusters are made of fresh, sweep sources, and tell of organizations, from now on.

        Call it on the loop.
        """
        for work in (self.resources.keep_fresh(), self.sweep.keep_sweeping(), self.organizations.keep_telling()):
            self.running.append(asyncio.create_task(work))

    def close(self) -> None:
        for task in self.running:
            task.cancel()
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.metroculus.close()
        self.directory.close()


def make_app(config: RestApiConfig, clock: Callable[[], float] = time.time) -> RestApi:
    """Put the service together.

    Raises:
        DirectoryError: where its file cannot be used.
        OSError: where the audit log cannot be written.
    """
    directory = open_directory(config.directory)
    client = Client(
        url=config.metroculus_url, secret=config.cluster_secret or "", verify=authorities(config.metroculus_ca)
    )
    metroculus = MetroculusPool(client, config.call_seconds)
    threads = ThreadPoolExecutor(DIRECTORY_THREADS, thread_name_prefix="directory")
    gate = Gate(directory, threads, clock, config.access.slowdown(), config.token_concurrency)
    resources = ResourcesController(gate, metroculus, clock, config.resources_refresh)

    def ready() -> dict[str, str]:
        return {"directory": gate.seen, "metroculus": metroculus.seen}

    service = Service(
        "rest-api",
        VERSION,
        CODES,
        ready,
        map_error,
        clock,
        security={"token": {"type": "http", "scheme": "bearer"}},
        audit=config.access.audit("rest-api", clock),
        proxies=config.access.proxies,
        cross_origin=CrossOrigin(config.cors_origins or ()),
    )
    kept = KeptAnswers(config.cache_mib << 20)
    KeptCollector(kept, service.registry)
    controllers = _controllers(gate, metroculus, resources, kept) | {"gateway_url": config.gateway_url}
    parts = {"gate": gate, "files": Files(config.export_seconds)}
    application = make_application(service, routes(parts, controllers), not_found=NoPage)
    sweep = SourcesSweep(gate, metroculus)
    return RestApi(
        application,
        service,
        directory,
        metroculus,
        resources,
        threads,
        kept,
        sweep,
        OrganizationsSync(gate, metroculus),
    )


def _controllers(
    gate: Gate, metroculus: MetroculusPool, resources: ResourcesController, kept: KeptAnswers
) -> dict[str, Any]:
    """What handlers call, by the names that routes ask for it."""
    costs = CostsController(metroculus, resources)
    return {
        "answers": kept,
        "costs": costs,
        "expenses": ExpensesController(metroculus, costs),
        "metrics": MetricsController(metroculus),
        "changes": ChangesController(metroculus),
        "live": LiveController(metroculus),
        "backfills": BackfillsController(metroculus),
        "chargebacks": ChargebackController(metroculus),
        "budgets": BudgetsController(metroculus),
        "alerts": AlertsController(metroculus),
        "links": ClustersController(gate, metroculus, kept),
    }
