"""Settings of Metroculus: its API, its worker and the command line read the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apscheduler.triggers.cron import CronTrigger

from metroculus.sources.outbound.addresses import AllowedAddresses, parse_upstream_url
from metroculus.storage.store import EMBEDDED, check_url
from tools.settings import Setting, address, count, duration, listed, one_of, seconds
from tools.tornado_service.access import ACCESS_SETTINGS, Access, access_of, tls_of
from tools.tornado_service.params import Uuid


def _url(text: str) -> str:
    return parse_upstream_url(text).text


def _allowed(text: str) -> AllowedAddresses:
    return AllowedAddresses(listed(text))


def _secret(text: str) -> str:
    if len(text) < 8 or not text.isascii() or not text.isprintable():
        raise ValueError("must be at least 8 printable ASCII characters")
    return text


def _label(text: str) -> str:
    if text and not text.isidentifier():
        raise ValueError("must be a label name")
    return text


def _registry(text: str) -> str:
    if not text.startswith(("sqlite:", "etcd://")) or text == "sqlite:":
        raise ValueError("must be sqlite:PATH or etcd://host:port")
    return text


def _cron(text: str) -> str:
    try:
        CronTrigger.from_crontab(text)
    except ValueError:
        raise ValueError("must be a cron expression of five fields, UTC") from None
    return text


SETTINGS = (
    Setting("CLUSTER_SECRET", "Secret that callers of Metroculus send.", _secret, None, "/secret/cluster", secret=True),
    Setting("METROCULUS_LISTEN", "Address to serve on.", address, ("127.0.0.1", 8969)),
    Setting("THANOS_QUERY_URL", "Thanos Query (or Prometheus) for all accounts.", _url),
    Setting(
        "TENANT_LABEL", "Label that tells tenants apart; empty for one cluster's own Prometheus.", _label, "tenant_id"
    ),
    Setting("KUBECOST_API_URL", "One cluster's Kubecost or OpenCost.", _url, None, "/kubecost/api_url"),
    Setting("KUBECOST_ACCOUNT_ID", "The account that KUBECOST_API_URL answers; without it, every account.", Uuid.parse),
    Setting("KUBECOST_TIMEOUT", "Seconds for one call to an upstream, and for one request.", seconds, 30.0),
    Setting("CACHE_TTL", "Seconds that an answer of live sources is kept as fresh; 0 keeps none.", duration, 300.0),
    Setting("CACHE_SIZE", "MiB of answers that are kept.", count, 64),
    Setting("UPSTREAM_ALLOW", "Networks and host suffixes that tenants' URLs may reach.", _allowed, AllowedAddresses()),
    Setting("DATA_DIR", "Folder for every file that has no setting of its own.", Path, Path(".metroculus")),
    Setting(
        "ENCRYPTION_KEY",
        "Keys that stored credentials are sealed under, by commas: the first seals, all open; without it a key file is"
        " made.",
        str,
        None,
        secret=True,
    ),
    Setting(
        "REGISTRY_URL",
        "Where upstreams of accounts are kept: sqlite:PATH (default: a file in DATA_DIR), or etcd://host:port for many"
        " machines.",
        _registry,
    ),
    Setting(
        "CLICKHOUSE_URL",
        "Where history is kept: embedded:PATH (default: a folder in DATA_DIR), or clickhouse://user:password@host/db,"
        " with ?cluster=NAME for replicated and distributed tables; clickhouses:// for TLS,"
        " with ?ca_certs=FILE where its authority is your own.",
        check_url,
        secret=True,
        etcd="/clickhouse/url",
    ),
    Setting("WORKER_LISTEN", "Address of the worker's metrics; they name accounts.", address, ("127.0.0.1", 8970)),
    Setting("EXTRACT_SCHEDULE", "When hours are extracted (cron, UTC).", _cron, "0 */1 * * *"),
    Setting("ASSETS_SCHEDULE", "When days of assets are extracted (cron, UTC).", _cron, "0 0 * * *"),
    Setting("AGGREGATE_SCHEDULE", "When summaries are brought up to date (cron, UTC).", _cron, "*/15 * * * *"),
    Setting("CLEANUP_SCHEDULE", "When old months and unread batches are removed (cron, UTC).", _cron, "0 2 * * *"),
    Setting("RETENTION_DAYS", "Days of history that are kept, in whole months.", count, 400),
    Setting("EXTRACT_PARALLEL", "Clusters that are extracted side by side.", count, 8),
    Setting(
        "WORKER_LOCKS", "What keeps two workers apart: file, or etcd with CONFIG_URL.", one_of("file", "etcd"), "file"
    ),
    *ACCESS_SETTINGS,
    Setting("TLS_CERT", "Certificate (PEM) to serve with."),
    Setting("TLS_KEY", "Its key (PEM)."),
    Setting("LOG_LEVEL", "debug, info, warning or error.", one_of("debug", "info", "warning", "error"), "info"),
    Setting("LOG_FORMAT", "text or json.", one_of("text", "json"), "text"),
)


@dataclass(frozen=True)
class MetroculusConfig:
    """Settings as values; ``kubecost_flavour`` is what ``metroculus up`` knows from its flag."""

    cluster_secret: str | None
    listen: tuple[str, int]
    thanos_query_url: str | None
    tenant_label: str
    kubecost_api_url: str | None
    kubecost_account_id: str | None
    kubecost_timeout: float
    upstream_allow: AllowedAddresses
    data_dir: Path
    encryption_key: str | None
    tls: tuple[str, str] | None
    access: Access = field(default_factory=Access)
    kubecost_flavour: Any = None
    registry_url: str | None = None
    """None is a file in ``data_dir``."""
    clickhouse_url: str | None = None
    """None keeps no history."""
    worker: WorkerConfig | None = None
    cache_ttl: float = 300.0
    cache_bytes: int = 64 << 20


@dataclass(frozen=True)
class WorkerConfig:
    """Of the worker alone."""

    listen: tuple[str, int] = ("127.0.0.1", 8970)
    extract_schedule: str = "0 */1 * * *"
    assets_schedule: str = "0 0 * * *"
    aggregate_schedule: str = "*/15 * * * *"
    cleanup_schedule: str = "0 2 * * *"
    retention_days: int = 400
    parallel: int = 8
    locks: str = "file"


def config_of(values: Mapping[str, Any]) -> MetroculusConfig:
    """Raises: SettingsError"""
    return MetroculusConfig(
        cluster_secret=values["cluster_secret"],
        listen=values["metroculus_listen"],
        thanos_query_url=values["thanos_query_url"],
        tenant_label=values["tenant_label"],
        kubecost_api_url=values["kubecost_api_url"],
        kubecost_account_id=values["kubecost_account_id"],
        kubecost_timeout=values["kubecost_timeout"],
        cache_ttl=values["cache_ttl"],
        cache_bytes=values["cache_size"] << 20,
        upstream_allow=values["upstream_allow"],
        data_dir=values["data_dir"],
        encryption_key=values["encryption_key"],
        registry_url=values["registry_url"],
        tls=tls_of(values),
        access=access_of(values),
        clickhouse_url=values["clickhouse_url"] or f"{EMBEDDED}{values['data_dir'] / 'store'}",
        worker=WorkerConfig(
            listen=values["worker_listen"],
            extract_schedule=values["extract_schedule"],
            assets_schedule=values["assets_schedule"],
            aggregate_schedule=values["aggregate_schedule"],
            cleanup_schedule=values["cleanup_schedule"],
            retention_days=values["retention_days"],
            parallel=values["extract_parallel"],
            locks=values["worker_locks"],
        ),
    )
