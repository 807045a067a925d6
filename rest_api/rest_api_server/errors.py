"""The REST API's errors: OptScale's numbers where it has one."""

from __future__ import annotations

from optscale_client.metroculus_client import (
    DeadlineExceeded,
    InvalidRequest,
    MetroculusError,
    NoSourceConfigured,
    ServiceUnavailable,
)
from rest_api.rest_api_server.answers import Failure
from rest_api.rest_api_server.directory.model import DirectoryError
from tools.tornado_service.errors import ApiError, CommonCodes, ErrorCode

NOT_FOUND = ErrorCode(404, "OE0002", "not found")
UNKNOWN = ErrorCode(400, "OE0212", "a parameter is unknown")
MISSING = ErrorCode(400, "OE0216", "a parameter is missing")
INVALID = ErrorCode(400, "OE0217", "a parameter is invalid")
FORBIDDEN = ErrorCode(403, "OE0234", "your role does not allow this")
UNAUTHORIZED = ErrorCode(401, "OE0235", "a token is required: Authorization: Bearer <token>")
METHOD = ErrorCode(405, "OE0245", "the method is not allowed here")
CONFLICT = ErrorCode(409, "OE0149", "this already exists")
TOO_LARGE = ErrorCode(413, "OE0901", "the request is too large")
INTERNAL = ErrorCode(500, "OE0902", "internal error")
STOPPING = ErrorCode(503, "OE0903", "shutting down")
NO_SOURCE = ErrorCode(409, "OE0904", "no cost source is configured for this cluster: link it with a flavour and a url")
BAD_ANSWER = ErrorCode(502, "OE0905", "no cost source returned a usable answer")
UNREACHABLE = ErrorCode(503, "OE0906", "no cost source could be reached")
DEADLINE = ErrorCode(504, "OE0907", "no cost source answered in time")
SEVERAL_CLUSTERS = ErrorCode(400, "OE0908", "cluster_id is required: the token sees more than one cluster")
LINK_REFUSED = ErrorCode(409, "OE0909", "the cost service refuses a source for this cluster")
NO_DIRECTORY = ErrorCode(503, "OE0910", "the directory cannot be used")
NO_HISTORY = ErrorCode(409, "OE0911", "no history is kept: the cost service has no store")
URL_TOO_LONG = ErrorCode(414, "OE0912", "the URL is too long")
TOO_MANY = ErrorCode(429, "OE0913", "too many requests")
OVERLOADED = ErrorCode(503, "OE0914", "too many concurrent requests")
WHICH_CLUSTER = ErrorCode(409, "OE0915", "the cost source contains several clusters: set cluster to select one")
CHANGED = ErrorCode(409, "OE0916", "another request has changed this: read it and try again")
NOT_PUSHED = ErrorCode(409, "OE0917", "this cluster's costs are not pushed: change its flavour to push first")
TOO_MANY_TOKENS = ErrorCode(429, "OE0918", "too many push tokens of this cluster are still valid: use one of them")
MONTH_CLOSED = ErrorCode(409, "OE0919", "a closed month cannot be changed")
NOT_COMPLETE = ErrorCode(409, "OE0920", "the month cannot be closed yet")
NOT_FIRING = ErrorCode(409, "OE0921", "the alert is no longer firing")

LIST_CHANGED = ErrorCode(409, "OE0922", "the data of this file is no longer stored: request the file again")

OF_WHAT_IS_KEPT = {
    "OM0042": LIST_CHANGED,
    "OM0037": NOT_FOUND,
    "OM0038": CONFLICT,
    "OM0039": NOT_FOUND,
    "OM0040": NOT_FIRING,
    "OM0043": CHANGED,
}
"""What Metroculus says of budgets, rules, alerts and lists."""

CODES = CommonCodes(
    unknown_parameter=UNKNOWN,
    missing_parameter=MISSING,
    invalid_parameter=INVALID,
    not_found=NOT_FOUND,
    method_not_allowed=METHOD,
    too_large=TOO_LARGE,
    url_too_long=URL_TOO_LONG,
    too_many=TOO_MANY,
    overloaded=OVERLOADED,
    internal=INTERNAL,
    shutting_down=STOPPING,
)


def failure_of(error: MetroculusError) -> Failure:
    """What failed of one cluster, as it stands inside an answer about several."""
    mapped = map_error(error) or ApiError(INTERNAL)
    return Failure(mapped.code.status, mapped.code.code, mapped.reason)


def map_error(error: BaseException) -> ApiError | None:
    """Metroculus' failures as the REST API's own; what is wrong between the two services is a bad gateway."""
    if isinstance(error, DirectoryError):
        return ApiError(NO_DIRECTORY, retry_after=5)
    if isinstance(error, DeadlineExceeded):
        return ApiError(DEADLINE)
    if isinstance(error, MetroculusError) and error.error_code in OF_WHAT_IS_KEPT:
        return ApiError(OF_WHAT_IS_KEPT[error.error_code], error.reason, error.params)
    if isinstance(error, NoSourceConfigured):
        if error.error_code == "OM0023":
            return ApiError(NO_HISTORY)
        if error.error_code == "OM0032":
            return ApiError(NOT_PUSHED)
        if error.error_code in ("OM0035", "OM0036"):
            code = MONTH_CLOSED if error.error_code == "OM0035" else NOT_COMPLETE
            return ApiError(code, error.reason, error.params)
        if error.error_code == "OM0030":
            return ApiError(WHICH_CLUSTER, error.reason, error.params)
        return ApiError(NO_SOURCE, error.reason if error.error_code == "OM0016" else "")
    if isinstance(error, MetroculusError) and error.error_code == "OM0034":
        return ApiError(TOO_MANY_TOKENS, retry_after=error.retry_after)
    if isinstance(error, InvalidRequest):
        return ApiError(INVALID, error.reason, error.params)
    if isinstance(error, ServiceUnavailable):
        code = {503: UNREACHABLE, 504: DEADLINE}.get(error.status or 503, BAD_ANSWER)
        retry_after = error.retry_after if code is not UNREACHABLE else error.retry_after or 5
        return ApiError(code, error.reason if error.status else "", retry_after=retry_after)
    if isinstance(error, MetroculusError):
        return ApiError(BAD_ANSWER)
    return None
