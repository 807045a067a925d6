"""The REST API's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.settings import Setting, address, one_of


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return text.rstrip("/")


def _directory(text: str) -> Path:
    scheme, _, path = text.partition(":")
    if scheme != "sqlite" or not path:
        raise ValueError("must be sqlite:PATH")
    return Path(path)


SETTINGS = (
    Setting("CLUSTER_SECRET", "Secret that Metroculus wants.", str, None, "/secret/cluster", secret=True),
    Setting("REST_API_LISTEN", "Address to serve on.", address, ("127.0.0.1", 8999)),
    Setting("METROCULUS_URL", "Where Metroculus is.", _url, "http://127.0.0.1:8969"),
    Setting("DIRECTORY_URL", "Where organizations, clusters, users and tokens are kept: sqlite:PATH.", _directory),
    Setting("DATA_DIR", "Folder for every file that has no setting of its own.", Path, Path(".metroculus")),
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
    directory: Path
    tls: tuple[str, str] | None = None


def config_of(values: Mapping[str, Any]) -> RestApiConfig:
    tls = (values["tls_cert"], values["tls_key"]) if values["tls_cert"] and values["tls_key"] else None
    return RestApiConfig(
        cluster_secret=values["cluster_secret"] or "",
        listen=values["rest_api_listen"],
        metroculus_url=values["metroculus_url"],
        directory=directory_of(values),
        tls=tls,
    )


def directory_of(values: Mapping[str, Any]) -> Path:
    found: Path | None = values["directory_url"]
    return found if found is not None else Path(values["data_dir"]) / "directory.sqlite"
