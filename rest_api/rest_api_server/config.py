"""The REST API's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rest_api.rest_api_server.controllers.metroculus import CALL_SECONDS
from rest_api.rest_api_server.directory.connect import SQLITE, check_url
from tools.settings import Setting, address, count, existing_file, one_of, seconds
from tools.tornado_service.access import ACCESS_SETTINGS, Access, access_of, tls_of


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return text.rstrip("/")


SETTINGS = (
    Setting("CLUSTER_SECRET", "Secret that Metroculus wants.", str, None, "/secret/cluster", secret=True),
    Setting("REST_API_LISTEN", "Address to serve on.", address, ("127.0.0.1", 8999)),
    Setting("METROCULUS_URL", "Where Metroculus is.", _url, "http://127.0.0.1:8969"),
    Setting(
        "METROCULUS_CA",
        "Authority (PEM file) that signed Metroculus' certificate; without it the system's.",
        existing_file,
    ),
    Setting(
        "DIRECTORY_URL",
        "Where organizations, clusters, users and tokens are kept: sqlite:PATH (default: a file in DATA_DIR), or"
        " mongodb://user:password@host/database.",
        check_url,
        etcd="/directory/url",
        secret=True,
    ),
    Setting("DATA_DIR", "Folder for every file that has no setting of its own.", Path, Path(".metroculus")),
    *ACCESS_SETTINGS,
    Setting("TOKEN_CONCURRENCY", "Requests at once with one token.", count, 32),
    Setting("RESOURCES_REFRESH", "Seconds between refreshes of quotas, limits and nodes.", seconds, 600.0),
    Setting("TLS_CERT", "Certificate (PEM) to serve with."),
    Setting("TLS_KEY", "Its key (PEM)."),
    Setting("LOG_LEVEL", "debug, info, warning or error.", one_of("debug", "info", "warning", "error"), "info"),
    Setting("LOG_FORMAT", "text or json.", one_of("text", "json"), "text"),
)


@dataclass(frozen=True)
class RestApiConfig:
    cluster_secret: str
    listen: tuple[str, int]
    metroculus_url: str
    directory_url: str
    metroculus_ca: str | None = None
    tls: tuple[str, str] | None = None
    access: Access = field(default_factory=Access)
    token_concurrency: int = 32
    resources_refresh: float = 600.0
    call_seconds: float = CALL_SECONDS


def config_of(values: Mapping[str, Any]) -> RestApiConfig:
    """Raises: SettingsError"""
    return RestApiConfig(
        cluster_secret=values["cluster_secret"] or "",
        listen=values["rest_api_listen"],
        metroculus_url=values["metroculus_url"],
        directory_url=directory_of(values),
        metroculus_ca=values["metroculus_ca"],
        tls=tls_of(values),
        access=access_of(values),
        token_concurrency=values["token_concurrency"],
        resources_refresh=values["resources_refresh"],
    )


def directory_of(values: Mapping[str, Any]) -> str:
    """Where the directory is, by default a file in ``DATA_DIR``."""
    return values["directory_url"] or f"{SQLITE}{Path(values['data_dir']) / 'directory.sqlite'}"
