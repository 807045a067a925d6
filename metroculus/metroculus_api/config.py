"""Metroculus' settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metroculus.sources.addresses import AllowedAddresses, parse_upstream_url
from tools.settings import Setting, address, listed, one_of, seconds
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
    Setting("UPSTREAM_ALLOW", "Networks and host suffixes that tenants' URLs may reach.", _allowed, AllowedAddresses()),
    Setting("DATA_DIR", "Folder for every file that has no setting of its own.", Path, Path(".metroculus")),
    Setting("ENCRYPTION_KEY", "Seals stored credentials; without it a key file is made.", str, None, secret=True),
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
    kubecost_flavour: Any = None


def config_of(values: Mapping[str, Any]) -> MetroculusConfig:
    tls = (values["tls_cert"], values["tls_key"]) if values["tls_cert"] and values["tls_key"] else None
    return MetroculusConfig(
        cluster_secret=values["cluster_secret"],
        listen=values["metroculus_listen"],
        thanos_query_url=values["thanos_query_url"],
        tenant_label=values["tenant_label"],
        kubecost_api_url=values["kubecost_api_url"],
        kubecost_account_id=values["kubecost_account_id"],
        kubecost_timeout=values["kubecost_timeout"],
        upstream_allow=values["upstream_allow"],
        data_dir=values["data_dir"],
        encryption_key=values["encryption_key"],
        tls=tls,
    )
