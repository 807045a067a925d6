"""The gateway's errors.

A sender of metrics drops for ever what gets a 4xx other than 429: these are for what can never be taken.
"""

from __future__ import annotations

from optscale_client.metroculus_client import MetroculusError
from tools.tornado_service.errors import ApiError, CommonCodes, ErrorCode

INVALID = ErrorCode(400, "OD0001", "a parameter is invalid")
UNKNOWN = ErrorCode(400, "OD0002", "a parameter is unknown")
MISSING = ErrorCode(400, "OD0003", "a parameter is missing")
UNAUTHORIZED = ErrorCode(401, "OD0004", "a push token is required: Bearer <token>, or Basic <any>:<token>")
FOREIGN = ErrorCode(403, "OD0005", "this push token belongs to another account")
NOT_FOUND = ErrorCode(404, "OD0006", "not found")
METHOD = ErrorCode(405, "OD0007", "the method is not allowed here")
TOO_LARGE = ErrorCode(413, "OD0008", "the request is too large")
URL_TOO_LONG = ErrorCode(414, "OD0009", "the URL is too long")
MEDIA_TYPE = ErrorCode(415, "OD0010", "use remote write 1.0: application/x-protobuf in snappy's block format")
TOO_MANY = ErrorCode(429, "OD0011", "too many bad tokens; try again later")
INTERNAL = ErrorCode(500, "OD0012", "internal error")
STOPPING = ErrorCode(503, "OD0013", "shutting down")
OVERLOADED = ErrorCode(503, "OD0014", "too many concurrent requests")
NO_METROCULUS = ErrorCode(503, "OD0015", "Metroculus is not available now")
NO_RECEIVER = ErrorCode(503, "OD0016", "the receiver of metrics is not available now")
NOT_PUSHED = ErrorCode(409, "OD0017", "this cluster's costs are no longer pushed")
OTHER_CLUSTER = ErrorCode(409, "OD0018", "another cluster's answers are pushed with this token")

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

RETRY_SECONDS = 5


def map_error(error: BaseException) -> ApiError | None:
    """Metroculus' failures as the gateway's: what it says of the answer itself goes through, the rest comes again."""
    if not isinstance(error, MetroculusError):
        return None
    if error.status == 400:
        return ApiError(INVALID, error.reason, error.params)
    if error.status == 413:
        return ApiError(TOO_LARGE, error.reason, error.params)
    if error.status == 409 and error.error_code == "OM0032":
        return ApiError(NOT_PUSHED)
    if error.status == 409 and error.error_code == "OM0041":
        return ApiError(OTHER_CLUSTER, error.reason)
    return ApiError(NO_METROCULUS, retry_after=error.retry_after or RETRY_SECONDS)
