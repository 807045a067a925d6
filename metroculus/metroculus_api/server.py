"""Metroculus' wiring: the one place where its parts are put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tornado.web import Application

from metroculus.metroculus_api.config import MetroculusConfig
from metroculus.metroculus_api.controllers.assets import InventoryController
from metroculus.metroculus_api.controllers.costs import CostController
from metroculus.metroculus_api.controllers.savings import SavingsController
from metroculus.metroculus_api.controllers.sources import SourcesController
from metroculus.metroculus_api.errors import CODES, map_error
from metroculus.metroculus_api.secret import SecretKeeper
from metroculus.metroculus_api.urls import routes
from metroculus.sources.accounts import Accounts, DefaultUpstream
from metroculus.sources.http import SourceHttp, Upstream
from metroculus.sources.registry import SourceRegistry, load_key
from metroculus.sources.thanos import ThanosSource
from tools.tornado_service.application import Service, make_application

VERSION = "0.1.0"


@dataclass
class Metroculus:
    """A wired service; ``close`` gives back what it holds."""

    application: Application
    service: Service
    secret: SecretKeeper
    http: SourceHttp
    registry: SourceRegistry

    def close(self) -> None:
        self.http.close()
        self.registry.close()


def make_app(config: MetroculusConfig, clock: Callable[[], float] = time.time) -> Metroculus:
    """Put the service together.

    Raises:
        RegistryError: where its files cannot be used.
    """
    secret = SecretKeeper(config.cluster_secret)
    http = SourceHttp(config.upstream_allow, config.kubecost_timeout)
    registry = SourceRegistry(config.data_dir / "sources.sqlite", load_key(config.data_dir, config.encryption_key))
    thanos = None
    if config.thanos_query_url:
        upstream = Upstream("the metrics source", config.thanos_query_url, trusted=True)
        thanos = ThanosSource(http, upstream, config.tenant_label, clock)
    default = None
    if config.kubecost_api_url:
        default = DefaultUpstream(config.kubecost_api_url, config.kubecost_account_id, config.kubecost_flavour)
    accounts = Accounts(registry, http, thanos, default, clock)
    savings = SavingsController(accounts)

    def ready() -> dict[str, str]:
        upstreams = "failing" if "open" in http.seen().values() else "ok"
        return {"secret": "ok" if secret.known else "down", "upstreams": upstreams}

    service = Service("metroculus", VERSION, CODES, ready, map_error, clock)
    controllers = {
        "costs": CostController(accounts, savings),
        "savings": savings,
        "inventory": InventoryController(accounts, clock),
        "sources": SourcesController(accounts, config.upstream_allow),
    }
    parts = {"secret": secret, "deadline_seconds": config.kubecost_timeout}
    return Metroculus(make_application(service, routes(parts, controllers)), service, secret, http, registry)
