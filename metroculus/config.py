"""Settings of Metroculus: its API, its worker and the command line read the same ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from apscheduler.triggers.cron import CronTrigger

from metroculus.sources.outbound.addresses import AllowedAddresses, parse_upstream_url
from metroculus.sources.source import LABEL_NAME
from metroculus.sources.thanos.client import REPLICA_LABELS
from metroculus.storage.store import EMBEDDED, check_url
from optscale_client.config_client.client import ConfigError, host_and_port
from tools.settings import (
    DATA_DIR,
    Setting,
    address,
    authority_file,
    base_url,
    cluster_secret,
    count,
    declared,
    duration,
    listed,
    one_of,
    seconds,
    settings_of,
    size,
    values_of,
)
from tools.tornado_service.access import SERVING_SETTINGS, Access, access_of, tls_of
from tools.tornado_service.params import Uuid

Role = Literal["extractor", "aggregator", "processor"]
WORKER_ROLES: tuple[Role, ...] = ("extractor", "aggregator", "processor")
"""What a worker may do."""


def _url(text: str) -> str:
    return parse_upstream_url(text).text


def _allowed(text: str) -> AllowedAddresses:
    return AllowedAddresses(listed(text))


def _label(text: str) -> str:
    if text and (not LABEL_NAME.fullmatch(text) or text.startswith("__")):
        raise ValueError("must be a label name")
    return text


def _labels(text: str) -> tuple[str, ...]:
    return tuple(_label(one) for one in listed(text))


def _registry(text: str) -> str:
    if text.startswith("etcd://"):
        try:
            host_and_port(text)
        except ConfigError as problem:
            raise ValueError(f"is no etcd: {problem}") from None
        return text
    if not text.startswith("sqlite:") or text == "sqlite:":
        raise ValueError("must be sqlite:PATH or etcd://host:port")
    return text


def _cron(text: str) -> str:
    try:
        if CronTrigger.from_crontab(text, "UTC").get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError(text)
    except ValueError:
        raise ValueError("must be a cron expression of five fields, UTC") from None
    return text


def _queue(text: str) -> str:
    if urlsplit(text).scheme not in ("amqp", "amqps") or not urlsplit(text).hostname:
        raise ValueError("must be amqp://user:password@host:port/vhost, or amqps://")
    return text


def _webhook(text: str) -> str:
    """An address that may carry its own secret in path or query, but no user."""
    base_url(text.partition("?")[0])
    if not text.isascii() or not text.isprintable() or any(mark in text for mark in " \\#"):
        raise ValueError("must be http:// or https:// without a user and a fragment")
    return text


def _influx(text: str) -> str:
    where, _, query = text.partition("?")
    base_url(where)
    asked = dict(parse_qsl(query))
    if not urlsplit(where).path.endswith("/write") or not asked.get("db") or asked.keys() - {"db", "u", "p", "rp"}:
        raise ValueError("must be http://host:8086/write?db=NAME; beside it u, p and rp may stand")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII, special characters quoted")
    return text


REDIS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
"""What may stand behind the ``?`` of ``REDIS_URL``."""


def _redis(text: str) -> str:
    wrong = ValueError(
        "must be redis://user:password@host:port/database (rediss:// for TLS), special characters quoted"
    )
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not re.fullmatch(r"(/\d*)?", parts.path):
        raise wrong
    known = REDIS_OPTIONS if parts.scheme == "rediss" else frozenset[str]()
    if dict(parse_qsl(parts.query, keep_blank_values=True)).keys() - known or parts.fragment:
        raise ValueError(f"has an unknown option; rediss:// knows {', '.join(sorted(REDIS_OPTIONS))}")
    return text


def _roles(text: str) -> tuple[Role, ...]:
    wanted = listed(text)
    if not wanted or not set(wanted) <= set(WORKER_ROLES):
        raise ValueError(f"must be of {', '.join(WORKER_ROLES)}")
    return tuple(role for role in WORKER_ROLES if role in wanted)


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of the worker alone."""

    listen: tuple[str, int] = declared(
        Setting("WORKER_LISTEN", "Address of the worker's metrics; they name accounts.", address, ("127.0.0.1", 8970))
    )
    extract_schedule: str = declared(
        Setting("EXTRACT_SCHEDULE", "When hours are extracted (cron, UTC).", _cron, "0 */1 * * *")
    )
    assets_schedule: str = declared(
        Setting("ASSETS_SCHEDULE", "When days of assets are extracted (cron, UTC).", _cron, "0 0 * * *")
    )
    aggregate_schedule: str = declared(
        Setting("AGGREGATE_SCHEDULE", "When summaries are brought up to date (cron, UTC).", _cron, "*/15 * * * *")
    )
    cleanup_schedule: str = declared(
        Setting("CLEANUP_SCHEDULE", "When old months and unread batches are removed (cron, UTC).", _cron, "0 2 * * *")
    )
    retention_days: int = declared(
        Setting("RETENTION_DAYS", "Days of history that are kept, in whole months.", count, 400)
    )
    purge_grace_days: int = declared(
        Setting(
            "PURGE_GRACE_DAYS",
            "Days from the removal of an account's source to the deletion of its history.",
            count,
            30,
        )
    )
    parallel: int = declared(Setting("EXTRACT_PARALLEL", "Clusters that are extracted side by side.", count, 8))
    queue_url: str | None = declared(
        Setting(
            "QUEUE_URL",
            "RabbitMQ for several workers, amqp://user:password@host:port/vhost; else one worker does it all.",
            _queue,
            secret=True,
            etcd="/queue/url",
        )
    )
    roles: tuple[Role, ...] = declared(
        Setting(
            "WORKER_ROLE",
            "Work that a worker does: extractor, aggregator, processor, or several separated by commas.",
            _roles,
            WORKER_ROLES,
        )
    )
    locks: str = declared(
        Setting(
            "WORKER_LOCKS",
            "Locks that prevent two workers from processing the same cluster: file, or etcd (needs CONFIG_URL).",
            one_of("file", "etcd"),
            "file",
        )
    )


@dataclass(frozen=True)
class AlertConfig:
    """Where alerts are sent to, and what of them is a matter of taste."""

    alertmanager_url: str | None = declared(
        Setting("ALERTMANAGER_URL", "An Alertmanager (http://host:9093) that receives firing alerts.", base_url)
    )
    webhook_url: str | None = declared(
        Setting(
            "ALERT_WEBHOOK_URL",
            "URL to which each firing or resolved alert is posted.",
            _webhook,
            secret=True,
            etcd="/alerts/webhook_url",
        )
    )
    webhook_secret: str | None = declared(
        Setting(
            "ALERT_WEBHOOK_SECRET",
            "Secret that signs requests to ALERT_WEBHOOK_URL.",
            cluster_secret,
            secret=True,
            etcd="/alerts/webhook_secret",
        )
    )
    ca: str | None = declared(
        Setting("ALERT_CA", "Authorities (PEM) that sign for the Alertmanager and the webhook.", authority_file)
    )
    public_url: str | None = declared(
        Setting("PUBLIC_URL", "Where users reach the REST API; links in alerts begin with it.", base_url)
    )
    store_bytes: int | None = declared(
        Setting(
            "STORE_BYTES",
            "Maximum size of the store, in bytes or as 500GiB; default: the size of its volume.",
            size,
        )
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """Where alerts are owed to."""
        urls = {"alertmanager": self.alertmanager_url, "webhook": self.webhook_url}
        return tuple(name for name, url in urls.items() if url is not None)


@dataclass(frozen=True)
class InfluxConfig:
    """An InfluxDB that is told what is stored."""

    url: str | None = declared(
        Setting(
            "INFLUX_URL",
            "Where an InfluxDB takes points, http://host:8086/write?db=costs, with &u= and &p= where it asks for them.",
            _influx,
            secret=True,
            etcd="/influx/url",
        )
    )
    token: str | None = declared(
        Setting("INFLUX_TOKEN", "Token of an InfluxDB 2 or 3.", cluster_secret, secret=True, etcd="/influx/token")
    )
    ca: str | None = declared(Setting("INFLUX_CA", "Authorities (PEM) that sign for the InfluxDB.", authority_file))


@dataclass(frozen=True, kw_only=True)
class MetroculusConfig:
    """Settings as values, each declared where it is held; ``kubecost_flavour`` is what ``metroculus up`` knows."""

    cluster_secret: str | None = declared(
        Setting(
            "CLUSTER_SECRET",
            "Secret that callers of Metroculus send.",
            cluster_secret,
            None,
            "/secret/cluster",
            secret=True,
        )
    )
    listen: tuple[str, int] = declared(
        Setting("METROCULUS_LISTEN", "Address to serve on.", address, ("127.0.0.1", 8969))
    )
    thanos_query_url: str | None = declared(
        Setting("THANOS_QUERY_URL", "Thanos Query (or Prometheus) for all accounts.", _url)
    )
    tenant_label: str = declared(
        Setting(
            "TENANT_LABEL",
            "Label that identifies the tenant; empty for one cluster's own Prometheus.",
            _label,
            "tenant_id",
        )
    )
    replica_labels: tuple[str, ...] = declared(
        Setting(
            "REPLICA_LABELS",
            "Labels that only identify the replica that recorded a series, used if nothing else deduplicates.",
            _labels,
            REPLICA_LABELS,
        )
    )
    kubecost_api_url: str | None = declared(
        Setting("KUBECOST_API_URL", "One cluster's Kubecost or OpenCost.", _url, None, "/kubecost/api_url")
    )
    kubecost_account_id: str | None = declared(
        Setting("KUBECOST_ACCOUNT_ID", "The account of KUBECOST_API_URL; without it, every account.", Uuid.parse)
    )
    kubecost_timeout: float = declared(
        Setting("KUBECOST_TIMEOUT", "Seconds for one call to an upstream, and for one request.", seconds, 30.0)
    )
    cache_ttl: float = declared(
        Setting("CACHE_TTL", "Seconds that a live answer is cached as fresh; 0 disables the cache.", duration, 300.0)
    )
    cache_mib: int = declared(Setting("CACHE_SIZE", "MiB of cached answers.", count, 64))
    redis_url: str | None = declared(
        Setting(
            "REDIS_URL",
            "A Redis (redis://host:6379/0) in which instances share their cached answers.",
            _redis,
            secret=True,
            etcd="/redis/url",
        )
    )
    upstream_allow: AllowedAddresses = declared(
        Setting(
            "UPSTREAM_ALLOW", "Networks and host suffixes that tenants' URLs may reach.", _allowed, AllowedAddresses()
        )
    )
    data_dir: Path = declared(DATA_DIR)
    encryption_key: str | None = declared(
        Setting(
            "ENCRYPTION_KEY",
            "Keys for stored credentials, separated by commas: the first encrypts, all decrypt; without it a key"
            " file is created.",
            str,
            None,
            secret=True,
        )
    )
    registry_url: str | None = declared(
        Setting(
            "REGISTRY_URL",
            "Where upstreams of accounts are kept: sqlite:PATH (default: a file in DATA_DIR), or etcd://host:port"
            " for many machines.",
            _registry,
        )
    )
    """None is a file in ``data_dir``."""
    clickhouse_url: str | None = declared(
        Setting(
            "CLICKHOUSE_URL",
            "Where history is kept: embedded:PATH (default: a folder in DATA_DIR), or clickhouse://user:password@host/db,"
            " with ?cluster=NAME for replicated and distributed tables; clickhouses:// for TLS,"
            " with ?ca_certs=FILE where its authority is your own.",
            check_url,
            secret=True,
            etcd="/clickhouse/url",
        )
    )
    """None keeps no history."""
    tls: tuple[str, str] | None = None
    access: Access = field(default_factory=Access)
    kubecost_flavour: Any = None
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    alerts: AlertConfig = field(default_factory=AlertConfig)
    influx: InfluxConfig = field(default_factory=InfluxConfig)

    @property
    def cache_bytes(self) -> int:
        return self.cache_mib << 20


SETTINGS = (
    *settings_of(MetroculusConfig),
    *settings_of(WorkerConfig),
    *settings_of(AlertConfig),
    *settings_of(InfluxConfig),
    *SERVING_SETTINGS,
)


def config_of(values: Mapping[str, Any]) -> MetroculusConfig:
    """Out of loaded settings; history is kept in ``DATA_DIR`` unless it is said where.

    Raises:
        SettingsError
    """
    config = MetroculusConfig(
        **values_of(MetroculusConfig, values),
        tls=tls_of(values),
        access=access_of(values),
        worker=WorkerConfig(**values_of(WorkerConfig, values)),
        alerts=AlertConfig(**values_of(AlertConfig, values)),
        influx=InfluxConfig(**values_of(InfluxConfig, values)),
    )
    return replace(config, clickhouse_url=config.clickhouse_url or f"{EMBEDDED}{config.data_dir / 'store'}")
