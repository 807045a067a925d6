"""The window that another one is held against."""

from __future__ import annotations

from tools.tornado_service.errors import CommonCodes
from tools.tornado_service.params import WindowQuery, resolve_window
from tools.window import Window


class AgainstQuery(WindowQuery, frozen=True, kw_only=True):
    """``against`` takes what ``window`` takes; without it, it is as much time just before."""

    against: str | None = None


def against(query: AgainstQuery, window: Window, now: float, codes: CommonCodes) -> Window:
    """What a window is compared with.

    Raises:
        ApiError
    """
    if query.against is None:
        span = window.end - window.start
        return Window(window.start - span, window.start, window.start, zone=window.zone)
    return resolve_window(WindowQuery(window=query.against, timezone=query.timezone), now, codes)
