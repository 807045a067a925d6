"""Cross-origin requests (the Fetch standard's CORS protocol): which web pages of other origins may read answers."""

from __future__ import annotations

import re

from tornado.httputil import HTTPHeaders

ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,255}")
EVERY = "*"
ASKED_HEADERS = "Authorization, Content-Type, If-None-Match, X-Request-ID"
"""What a page may send beside what every page may."""
SHOWN_HEADERS = "Age, Allow, Content-Length, ETag, Retry-After, X-Cache, X-Request-ID"
PREFLIGHT_SECONDS = 600


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins between commas, as browsers send them; ``*`` alone is every origin.

    Raises:
        ValueError
    """
    origins = tuple(dict.fromkeys(part.strip().rstrip("/").lower() for part in text.split(",") if part.strip()))
    if origins == (EVERY,):
        return origins
    bad = [origin for origin in origins if not ORIGIN.fullmatch(origin)]
    if bad:
        raise ValueError(f"must be * or origins such as https://costs.example.com between commas, not {bad[0]}")
    return origins


class CrossOrigin:
    """The origins whose pages may read answers. Credentials are headers, never cookies: no page has them by itself."""

    def __init__(self, origins: tuple[str, ...] = ()) -> None:
        self._origins = frozenset(origins)

    def tell(self, headers: HTTPHeaders, origin: str | None) -> bool:
        """Put into an answer's headers who may read it; whether that is the page that asks."""
        if not self._origins:
            return False
        if EVERY in self._origins:
            headers["Access-Control-Allow-Origin"] = EVERY
        else:
            headers["Vary"] = "Accept-Encoding, Origin"
            if origin is None or origin.lower() not in self._origins:
                return False
            headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = SHOWN_HEADERS
        return origin is not None

    @staticmethod
    def allow(headers: HTTPHeaders, methods: str) -> None:
        """What a preflight asks: the methods and headers that a page may use, and for how long that holds (seconds)."""
        headers["Access-Control-Allow-Methods"] = methods
        headers["Access-Control-Allow-Headers"] = ASKED_HEADERS
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
