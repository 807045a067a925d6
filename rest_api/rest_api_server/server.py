"""The REST API's wiring: the one place where its parts are put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tornado.web import Application

from optscale_client.metroculus_client import Client
from rest_api.rest_api_server.auth import Gate
from rest_api.rest_api_server.config import RestApiConfig
from rest_api.rest_api_server.controllers.clusters import ClustersController
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.controllers.expenses import ExpensesController
from rest_api.rest_api_server.controllers.metrics import MetricsController
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import Directory
from rest_api.rest_api_server.directory.sqlite import SqliteDirectory
from rest_api.rest_api_server.errors import CODES, map_error
from rest_api.rest_api_server.urls import routes
from tools.tornado_service.application import Service, make_application

VERSION = "0.1.0"
DIRECTORY_THREADS = 8


@dataclass
class RestApi:
    """A wired service; ``close`` gives back what it holds."""

    application: Application
    service: Service
    directory: Directory
    metroculus: MetroculusPool
    threads: ThreadPoolExecutor

    def close(self) -> None:
        self.threads.shutdown(wait=True)
        self.metroculus.close()
        self.directory.close()


def make_app(config: RestApiConfig, clock: Callable[[], float] = time.time) -> RestApi:
    """Put the service together.

    Raises:
        DirectoryError: where its file cannot be used.
    """
    directory = SqliteDirectory(config.directory)
    metroculus = MetroculusPool(Client(url=config.metroculus_url, secret=config.cluster_secret))
    threads = ThreadPoolExecutor(DIRECTORY_THREADS, thread_name_prefix="directory")
    gate = Gate(directory, threads, clock)

    def ready() -> dict[str, str]:
        return {"directory": "ok", "metroculus": metroculus.seen}

    service = Service("rest-api", VERSION, CODES, ready, map_error, clock)
    controllers = {
        "costs": CostsController(metroculus),
        "expenses": ExpensesController(metroculus),
        "metrics": MetricsController(metroculus),
        "links": ClustersController(gate, metroculus),
    }
    application = make_application(service, routes({"gate": gate}, controllers))
    return RestApi(application, service, directory, metroculus, threads)
