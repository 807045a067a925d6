"""What can go wrong when Metroculus is called: each a ``requests.HTTPError``, as callers of OptScale expect."""

from __future__ import annotations

import json
from typing import Any

import requests


class MetroculusError(requests.HTTPError):
    """A call failed.

    Attributes:
        status: HTTP status, None where no answer came.
        error_code: ``OM....``, empty where the answer had none.
        reason: what the service said.
        params: what in the request is to blame.
        request_id: to find the call in the service's log.
        retry_after: seconds, None where the service did not say.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        error_code: str = "",
        params: tuple[str, ...] = (),
        request_id: str = "",
        retry_after: int | None = None,
        response: requests.Response | None = None,
    ) -> None:
        super().__init__(reason, response=response)
        self.status = status
        self.error_code = error_code
        self.reason = reason
        self.params = params
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(MetroculusError):
    """400: a parameter is missing, unknown or wrong."""


class Unauthorized(MetroculusError):
    """401 or 403: the cluster secret is missing or wrong."""


class NotFound(MetroculusError):
    """404."""


class NoSourceConfigured(MetroculusError):
    """409: no source could answer for this account."""


class ServiceUnavailable(MetroculusError):
    """502, 503, 504: no source answered, or the service itself could not be reached."""


class DeadlineExceeded(ServiceUnavailable):
    """The call's own deadline passed."""


_KINDS: dict[int, type[MetroculusError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: NoSourceConfigured,
    502: ServiceUnavailable,
    503: ServiceUnavailable,
    504: ServiceUnavailable,
}


def error_about(status: int, error_code: str, reason: str) -> MetroculusError:
    """The typed error of one of several accounts, as an answer about them all tells it."""
    return _KINDS.get(status, MetroculusError)(reason, status=status, error_code=error_code)


def error_of(response: requests.Response, body: bytes) -> MetroculusError:
    """The typed error of an answer that is none of success."""
    detail: dict[str, Any] = {}
    try:
        parsed = json.loads(body)
        detail = parsed["error"] if isinstance(parsed["error"], dict) else {}
    except (ValueError, KeyError, TypeError):
        pass
    retry_after = response.headers.get("Retry-After", "")
    return _KINDS.get(response.status_code, MetroculusError)(
        str(detail.get("reason") or f"Metroculus answered with status {response.status_code}"),
        status=response.status_code,
        error_code=str(detail.get("error_code") or ""),
        params=tuple(map(str, detail.get("params") or ())),
        request_id=response.headers.get("X-Request-ID", ""),
        retry_after=int(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
        response=response,
    )
