"""Templates, and how figures look on a page: what is not known is said in words."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from tornado.template import Loader

from rest_api.rest_api_server.pages.words import amounts_text, step_text, words
from tools.version import VERSION
from tools.window import iso
from tools.wording import NOT_KNOWN, special_text

MINUS = "\N{MINUS SIGN}"


@cache
def _loader() -> Loader:
    return Loader(str(files("rest_api.rest_api_server.pages") / "templates"), autoescape="xhtml_escape")


def render(template: str, **values: Any) -> bytes:
    """A page; every value is escaped where it stands."""
    shown = {
        "money": money,
        "ratio": ratio,
        "change": change,
        "link": link,
        "sort_link": sort_link,
        "iso": iso,
        "words": words,
        "special_text": special_text,
        "step_text": step_text,
        "amounts_text": amounts_text,
        "version": VERSION,
    }
    return bytes(_loader().load(template).generate(**shown, **values))


def money(value: float | None, currency: str | None = None) -> str:
    """``1,234.56 USD``; less than half a cent is told to its first digit that is not 0."""
    if value is None:
        return NOT_KNOWN
    digits = 2
    while digits < 8 and value and abs(value) < 0.5 * 10**-digits:
        digits += 1
    text = f"{abs(value):,.{digits}f}"
    sign = MINUS if value < 0 else ""
    return f"{sign}{text} {currency}" if currency else f"{sign}{text}"


def change(value: float | None, before: float | None) -> str:
    """A difference with its sign, and its share of what was before."""
    if value is None:
        return NOT_KNOWN
    sign = "+" if value > 0 else ""
    share = f" ({value / before:+.0%})".replace("-", MINUS) if before and before > 0 else ""
    return f"{sign}{money(value)}{share}"


def ratio(value: float | None) -> str:
    """A share, or that it is not known."""
    return NOT_KNOWN if value is None else f"{value:.0%}".replace("-", MINUS)


def sort_link(path: str, asked: dict[str, Any], name: str, usual: str, text: bool = False) -> tuple[str, str]:
    """Where a column's header leads, and how the table is sorted by it (``aria-sort``); once more turns it round.

    Args:
        usual: the column that it is sorted by where nothing is asked.
        text: whether it begins with the first name, not with the dearest.
    """
    chosen = asked.get("sort", usual) == name
    first, other = ("asc", "desc") if text else ("desc", "asc")
    now = (asked.get("order") or first) if chosen else ""
    turned = other if now == first else None
    target = link(path, asked, sort=None if name == usual else name, order=turned)
    return target, {"asc": "ascending", "desc": "descending"}.get(now, "none")


def link(path: str, query: dict[str, Any], **other: Any) -> str:
    """A path with a query; some of it other than it was, and what is None or empty left out."""
    wanted = {name: value for name, value in (query | other).items() if value not in (None, "", ())}
    return f"{path}?{urlencode(wanted, doseq=True)}" if wanted else path
