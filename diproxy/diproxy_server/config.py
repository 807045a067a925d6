"""The gateway's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tools.settings import (
    DATA_DIR,
    Setting,
    address,
    authority_file,
    base_url,
    cluster_secret,
    declared,
    settings_of,
    values_of,
    whole_number,
)
from tools.tornado_service.access import SERVING_SETTINGS, Access, access_of, tls_of

RECEIVE_PATH = "/api/v1/receive"
DEFAULT_MAX_BYTES = 32 << 20
MOST = 9_999_999_999
"""Of bytes, series and samples; memory ends before."""


def _label(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", text, re.ASCII):
        raise ValueError("must be the name of a label")
    return text


def _receive_url(text: str) -> str:
    """Where samples are written; the receiver's own path where none is given."""
    url = base_url(text)
    return url if urlsplit(url).path else url + RECEIVE_PATH


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Settings as values, each declared where it is held."""

    cluster_secret: str | None = declared(
        Setting("CLUSTER_SECRET", "Secret that Metroculus wants.", cluster_secret, None, "/secret/cluster", secret=True)
    )
    listen: tuple[str, int] = declared(Setting("DIPROXY_LISTEN", "Address to serve on.", address, ("127.0.0.1", 8935)))
    metroculus_url: str = declared(Setting("METROCULUS_URL", "Where Metroculus is.", base_url, "http://127.0.0.1:8969"))
    metroculus_ca: str | None = declared(
        Setting(
            "METROCULUS_CA",
            "Authority (PEM file) that signed Metroculus' certificate; without it the system's.",
            authority_file,
        )
    )
    thanos_receive_url: str | None = declared(
        Setting(
            "THANOS_RECEIVE_URL",
            "Thanos Receive; /api/v1/receive is added where the URL has no path. Without it metrics are not taken.",
            _receive_url,
        )
    )
    thanos_receive_ca: str | None = declared(
        Setting(
            "THANOS_RECEIVE_CA",
            "Authority (PEM file) that signed the receiver's certificate; without it the system's.",
            authority_file,
        )
    )
    tenant_label: str = declared(
        Setting(
            "TENANT_LABEL", "Label that tells tenants apart; no series that is pushed may have it.", _label, "tenant_id"
        )
    )
    push_max_bytes: int = declared(
        Setting("PUSH_MAX_BYTES", "Packed bytes that one request may have.", whole_number(MOST), DEFAULT_MAX_BYTES)
    )
    push_max_series: int = declared(
        Setting("PUSH_MAX_SERIES", "Series that one request of remote write may have.", whole_number(MOST), 50_000)
    )
    push_max_samples: int = declared(
        Setting("PUSH_MAX_SAMPLES", "Samples that one request of remote write may have.", whole_number(MOST), 500_000)
    )
    data_dir: Path = declared(DATA_DIR)
    tls: tuple[str, str] | None = None
    access: Access = field(default_factory=Access)


SETTINGS = (*settings_of(GatewayConfig), *SERVING_SETTINGS)


def config_of(values: Mapping[str, Any]) -> GatewayConfig:
    """Raises: SettingsError"""
    return GatewayConfig(**values_of(GatewayConfig, values), tls=tls_of(values), access=access_of(values))
