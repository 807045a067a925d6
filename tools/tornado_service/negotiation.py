"""Content negotiation: gzip or not, and 304 where the caller has the answer already (RFC 9110)."""

from __future__ import annotations

import re
from functools import lru_cache

from tornado.httputil import HTTPHeaders

from tools.tornado_service.prepared import Prepared

_TAG = re.compile(r'\*|(?:W/)?"[^"]*"')
_QUALITY = re.compile(r"q\s*=\s*([0-9.]+)", re.IGNORECASE)


@lru_cache(256)
def accepts_gzip(accepted: str) -> bool:
    """Whether an ``Accept-Encoding`` allows gzip; what is named outweighs ``*``, and ``q=0`` refuses."""
    any_other = False
    for part in accepted.split(","):
        coding, _, parameters = part.partition(";")
        quality = _QUALITY.search(parameters)
        try:
            allowed = quality is None or float(quality[1]) > 0
        except ValueError:
            allowed = False
        if coding.strip().lower() in ("gzip", "x-gzip"):
            return allowed
        if coding.strip() == "*":
            any_other = allowed
    return any_other


def matches_tag(if_none_match: str, tag: str) -> bool:
    """Whether an ``If-None-Match`` names an entity tag; compared weakly, as it must be for GET."""
    wanted = tag.removeprefix("W/")
    return any(one == "*" or one.removeprefix("W/") == wanted for one in _TAG.findall(if_none_match))


def takes_gzip(asked: HTTPHeaders) -> bool:
    """Whether the sender of these request headers accepts a gzip body."""
    # ``in`` takes a third of the time of ``get`` for a header that is absent.
    return "Accept-Encoding" in asked and accepts_gzip(asked["Accept-Encoding"])


def represent(prepared: Prepared, asked: HTTPHeaders, headers: HTTPHeaders, tagged: bool = True) -> bytes | None:
    """The bytes to send of an answer, what is told of them put into ``headers``; None where the caller has them.

    Args:
        asked: the request's headers.
        tagged: whether the answer is that of a read that went well, which has a tag.
    """
    body, tag = prepared.body, prepared.etag
    if prepared.packed is not None and takes_gzip(asked):
        body, tag = prepared.packed, f"W/{tag}"
        headers["Content-Encoding"] = "gzip"
    if tagged:
        headers["Etag"] = tag
        if "If-None-Match" in asked and matches_tag(asked["If-None-Match"], tag):
            for name in ("Content-Encoding", "Content-Type"):
                headers.pop(name, None)
            return None
    headers["Content-Length"] = str(len(body))
    return body
