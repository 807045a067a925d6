"""Metroculus' error codes: OptScale's numbers where it has one."""

from __future__ import annotations

from tools.tornado_service.errors import CommonCodes, ErrorCode

WRONG_SECRET = ErrorCode(403, "OM0005", "the cluster secret is wrong")
INVALID = ErrorCode(400, "OM0006", "a parameter is invalid")
NO_SECRET = ErrorCode(401, "OM0007", "the header Secret is missing")
MISSING = ErrorCode(400, "OM0008", "a parameter is missing")
UNKNOWN = ErrorCode(400, "OM0009", "a parameter is unknown")
NOT_FOUND = ErrorCode(404, "OM0010", "not found")
METHOD = ErrorCode(405, "OM0011", "the method is not allowed here")
TOO_LARGE = ErrorCode(413, "OM0012", "the request is too large")
INTERNAL = ErrorCode(500, "OM0013", "internal error")
STOPPING = ErrorCode(503, "OM0014", "shutting down")
NO_SOURCE = ErrorCode(
    409,
    "OM0015",
    "no cost source is configured: PUT /metroculus/v2/kubecost_sources/{cloud_account_id}, "
    "or set KUBECOST_API_URL or THANOS_QUERY_URL",
)
NO_METRICS = ErrorCode(409, "OM0016", "no metrics source is configured: set THANOS_QUERY_URL")
ONE_CLUSTER = ErrorCode(
    409,
    "OM0017",
    "this service is in one-cluster mode: KUBECOST_API_URL is used for every account; set KUBECOST_ACCOUNT_ID",
)
BAD_ANSWER = ErrorCode(502, "OM0018", "no source returned a usable answer")
UNREACHABLE = ErrorCode(503, "OM0019", "no source could be reached")
DEADLINE = ErrorCode(504, "OM0020", "no source answered in time")
NO_SECRET_YET = ErrorCode(503, "OM0021", "the cluster secret is not known yet")

NO_REGISTRY = ErrorCode(503, "OM0022", "the registry of sources cannot be used")

NO_HISTORY = ErrorCode(409, "OM0023", "no history is kept here: set CLICKHOUSE_URL and run a worker")
NO_WORKER = ErrorCode(409, "OM0024", "no worker runs on this store: start with metroculus serve --worker")
STORE_FAILED = ErrorCode(503, "OM0025", "the store cannot be used now")
TOO_MANY_POINTS = ErrorCode(400, "OM0026", "the step is too fine for time that is not stored")
URL_TOO_LONG = ErrorCode(414, "OM0027", "the URL is too long")
TOO_MANY = ErrorCode(429, "OM0028", "too many requests")
OVERLOADED = ErrorCode(503, "OM0029", "too many concurrent requests")
SEVERAL_CLUSTERS = ErrorCode(409, "OM0030", "the source knows several clusters: name the account's own")
OUTDATED = ErrorCode(409, "OM0031", "a newer version of this source exists")
NOT_PUSHED = ErrorCode(409, "OM0032", "this account's costs are not pushed: its source has another flavour, or none")
INBOX_FULL = ErrorCode(503, "OM0033", "too much pushed data is waiting to be stored")
TOO_MANY_TOKENS = ErrorCode(429, "OM0034", "too many push tokens of this account are still valid: use one of them")
ALREADY_CLOSED = ErrorCode(409, "OM0035", "a closed month cannot be changed")
NOT_COMPLETE = ErrorCode(409, "OM0036", "the month cannot be closed yet")
NO_BUDGET = ErrorCode(404, "OM0037", "there is no such budget")
NO_ALERT = ErrorCode(404, "OM0039", "there is no such alert")
NOT_FIRING = ErrorCode(409, "OM0040", "the alert is no longer firing")
OTHER_CLUSTER = ErrorCode(409, "OM0041", "another cluster's answers are pushed with this token")
LIST_CHANGED = ErrorCode(409, "OM0042", "the data of this list is no longer stored: request the list again")
DECISION_CHANGED = ErrorCode(409, "OM0043", "another request has changed this: read it and try again")
NAME_TAKEN = ErrorCode(409, "OM0038", "this name is taken")

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
