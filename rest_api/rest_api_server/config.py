"""The REST API's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rest_api.rest_api_server.controllers.metroculus import CALL_SECONDS
from rest_api.rest_api_server.directory.connect import SQLITE, check_url
from tools.settings import (
    DATA_DIR,
    Setting,
    address,
    authority_file,
    base_url,
    cluster_secret,
    count,
    declared,
    seconds,
    settings_of,
    values_of,
)
from tools.tornado_service.access import SERVING_SETTINGS, Access, access_of, tls_of
from tools.tornado_service.cross_origin import parse_origins


@dataclass(frozen=True, kw_only=True)
class RestApiConfig:
    """Settings as values, each declared where it is held."""

    cluster_secret: str | None = declared(
        Setting("CLUSTER_SECRET", "Secret of Metroculus.", cluster_secret, None, "/secret/cluster", secret=True)
    )
    listen: tuple[str, int] = declared(Setting("REST_API_LISTEN", "Address to serve on.", address, ("127.0.0.1", 8999)))
    metroculus_url: str = declared(Setting("METROCULUS_URL", "Where Metroculus is.", base_url, "http://127.0.0.1:8969"))
    metroculus_ca: str | None = declared(
        Setting(
            "METROCULUS_CA",
            "Authority (PEM file) that signed Metroculus' certificate; without it the system's.",
            authority_file,
        )
    )
    directory_url: str | None = declared(
        Setting(
            "DIRECTORY_URL",
            "Where organizations, clusters, users and tokens are kept: sqlite:PATH (default: a file in DATA_DIR), or"
            " mongodb://user:password@host/database.",
            check_url,
            etcd="/directory/url",
            secret=True,
        )
    )
    data_dir: Path = declared(DATA_DIR)
    cache_mib: int = declared(Setting("CACHE_SIZE", "MiB of cached answers.", count, 64))
    token_concurrency: int = declared(Setting("TOKEN_CONCURRENCY", "Requests at once with one token.", count, 32))
    resources_refresh: float = declared(
        Setting("RESOURCES_REFRESH", "Seconds between refreshes of quotas, limits and nodes.", seconds, 600.0)
    )
    cors_origins: tuple[str, ...] | None = declared(
        Setting(
            "CORS_ORIGINS",
            "Origins whose web pages may read answers, between commas; * is every one. None by default.",
            parse_origins,
        )
    )
    gateway_url: str | None = declared(
        Setting(
            "GATEWAY_URL",
            "Address of the gateway that the web page shows when a cluster is added; without it, an example.",
            base_url,
        )
    )
    export_seconds: float = declared(
        Setting("EXPORT_SECONDS", "Seconds to make and send a file (format=csv or xlsx).", seconds, 600.0)
    )
    tls: tuple[str, str] | None = None
    access: Access = field(default_factory=Access)
    call_seconds: float = CALL_SECONDS

    @property
    def directory(self) -> str:
        """Where the directory is, by default a file in ``DATA_DIR``."""
        return directory_of({"directory_url": self.directory_url, "data_dir": self.data_dir})


SETTINGS = (*settings_of(RestApiConfig), *SERVING_SETTINGS)


def config_of(values: Mapping[str, Any]) -> RestApiConfig:
    """Raises: SettingsError"""
    return RestApiConfig(**values_of(RestApiConfig, values), tls=tls_of(values), access=access_of(values))


def directory_of(values: Mapping[str, Any]) -> str:
    """Where the directory is, by default a file in ``DATA_DIR``."""
    return values["directory_url"] or f"{SQLITE}{Path(values['data_dir']) / 'directory.sqlite'}"
