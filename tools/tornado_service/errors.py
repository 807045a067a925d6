"""One error shape for both services: ``{"error": {"status_code", "error_code", "reason", "params"}}`` (OptScale's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct


@dataclass(frozen=True)
class ErrorCode:
    """A numbered error: its HTTP status, its code and what it means."""

    status: int
    code: str
    meaning: str


@dataclass(frozen=True)
class CommonCodes:
    """The codes that the shared parts of a service answer with."""

    unknown_parameter: ErrorCode
    missing_parameter: ErrorCode
    invalid_parameter: ErrorCode
    not_found: ErrorCode
    method_not_allowed: ErrorCode
    too_large: ErrorCode
    url_too_long: ErrorCode
    too_many: ErrorCode
    overloaded: ErrorCode
    internal: ErrorCode
    shutting_down: ErrorCode


class ApiError(Exception):
    """An outcome that is an error; ``params`` name what in the request is to blame."""

    def __init__(
        self, code: ErrorCode, reason: str = "", params: Sequence[str] = (), retry_after: int | None = None
    ) -> None:
        super().__init__(reason or code.meaning)
        self.code = code
        self.reason = reason or code.meaning
        self.params = tuple(params)
        self.retry_after = retry_after


class ErrorDetail(Struct, frozen=True):
    status_code: int
    error_code: str
    reason: str
    params: tuple[str, ...]


class ErrorBody(Struct, frozen=True):
    error: ErrorDetail


def error_body(error: ApiError) -> ErrorBody:
    return ErrorBody(ErrorDetail(error.code.status, error.code.code, error.reason, error.params))
