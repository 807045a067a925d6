"""Settings of both services about who asks: where from, how often, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.settings import Setting, SettingsError, count, listed, one_of
from tools.tornado_service.audit import AuditLog
from tools.tornado_service.proxies import TrustedProxies
from tools.tornado_service.slowdown import Slowdown


def _proxies(text: str) -> TrustedProxies:
    return TrustedProxies(listed(text))


ACCESS_SETTINGS = (
    Setting("AUDIT_LOG", "File of the audit log, or - for standard output. Default: audit.jsonl in DATA_DIR."),
    Setting(
        "TRUSTED_PROXIES",
        "Networks whose X-Forwarded-For is believed (an ingress of yours).",
        _proxies,
        TrustedProxies(),
    ),
    Setting(
        "BAD_TOKENS_A_MINUTE", "Bad tokens or secrets from one address that are answered without delay.", count, 10
    ),
)


SERVING_SETTINGS = (
    *ACCESS_SETTINGS,
    Setting("TLS_CERT", "Certificate (PEM) to serve with."),
    Setting("TLS_KEY", "Its key (PEM)."),
    Setting("LOG_LEVEL", "debug, info, warning or error.", one_of("debug", "info", "warning", "error"), "info"),
    Setting("LOG_FORMAT", "text or json.", one_of("text", "json"), "text"),
)
"""What every service has."""


@dataclass(frozen=True)
class Access:
    """What is asked of a service's callers; ``audit_log`` None keeps no audit log."""

    audit_log: str | None = None
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    bad_tokens_a_minute: int = 10

    def audit(self, service: str, clock: Callable[[], float]) -> AuditLog | None:
        """Raises: OSError, naming the file that cannot be written."""
        if self.audit_log is None:
            return None
        made = AuditLog(self.audit_log, service, clock)
        try:
            made.check()
        except OSError as problem:
            raise OSError(f"AUDIT_LOG {self.audit_log}: {problem.strerror or problem}") from None
        return made

    def slowdown(self) -> Slowdown:
        return Slowdown(self.bad_tokens_a_minute)


def audit_log_of(values: Mapping[str, Any]) -> str:
    """Where the audit log goes, by default a file in ``DATA_DIR``."""
    return values["audit_log"] or str(Path(values["data_dir"]) / "audit.jsonl")


def access_of(values: Mapping[str, Any]) -> Access:
    return Access(
        audit_log=audit_log_of(values),
        proxies=values["trusted_proxies"],
        bad_tokens_a_minute=values["bad_tokens_a_minute"],
    )


def tls_of(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Certificate and key, both or none.

    Raises:
        SettingsError: one without the other, which would serve without TLS.
    """
    given = (values["tls_cert"], values["tls_key"])
    if all(given):
        return given
    if any(given):
        raise SettingsError("TLS_CERT and TLS_KEY are needed together")
    return None
