"""A failure of a source, the registry or the store as an HTTP outcome, in one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from metroculus.codes import (
    BAD_ANSWER,
    DEADLINE,
    DECISION_CHANGED,
    INVALID,
    NO_HISTORY,
    NO_METRICS,
    NO_REGISTRY,
    NO_SOURCE,
    NO_WORKER,
    SEVERAL_CLUSTERS,
    STORE_FAILED,
    UNREACHABLE,
)
from metroculus.sources.errors import (
    BadAnswer,
    DeadlineExceeded,
    NoMetricsSource,
    NoSource,
    RegistryError,
    SeveralClusters,
    SourceError,
    Unreachable,
)
from metroculus.storage.documents import DocumentChanged
from metroculus.storage.engine import StoreError, TooManyRows
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError

T = TypeVar("T")


class NoHistory(Exception):
    """This service keeps no history."""


def history_of(part: T | None) -> T:
    """A part of a service that keeps history: its store, or what reads it.

    Raises:
        NoHistory: it keeps none.
    """
    if part is None:
        raise NoHistory
    return part


class NoWorker(Exception):
    """Nobody would take up a back-fill that is asked for here."""


def failure_of(error: BaseException) -> structs.Failure | None:
    """A failure that concerns one of several accounts, as it stands in the answer about all; None for a defect."""
    mapped = error if isinstance(error, ApiError) else map_error(error)
    if mapped is None:
        return None
    return structs.Failure(mapped.code.status, mapped.code.code, mapped.reason)


def cannot_group_by(names: Iterable[str], parameter: str, where: str = "") -> ApiError:
    """An account's metrics do not tell what is asked for: refused, so that it never looks unallocated."""
    return ApiError(INVALID, f"the metrics of this account do not tell {', '.join(names)}{where}", [parameter])


def map_error(error: BaseException) -> ApiError | None:
    """The one place where a source's failure becomes an HTTP outcome."""
    if isinstance(error, NoMetricsSource):
        return ApiError(NO_METRICS)
    if isinstance(error, NoSource):
        return ApiError(NO_SOURCE)
    if isinstance(error, NoHistory):
        return ApiError(NO_HISTORY)
    if isinstance(error, NoWorker):
        return ApiError(NO_WORKER)
    if isinstance(error, DocumentChanged):
        return ApiError(DECISION_CHANGED)
    if isinstance(error, TooManyRows):
        return ApiError(INVALID, f"{error}: group by fewer keys, or ask for a shorter window", ["group_by"])
    if isinstance(error, StoreError):
        return ApiError(STORE_FAILED, retry_after=5)
    if isinstance(error, RegistryError):
        return ApiError(NO_REGISTRY, retry_after=5)
    if isinstance(error, SeveralClusters):
        return ApiError(SEVERAL_CLUSTERS, str(error), list(error.names))
    if isinstance(error, DeadlineExceeded):
        return ApiError(DEADLINE, str(error))
    if isinstance(error, Unreachable):
        return ApiError(UNREACHABLE, str(error), retry_after=error.retry_after)
    if isinstance(error, (BadAnswer, SourceError)):
        return ApiError(BAD_ANSWER, str(error))
    return None
