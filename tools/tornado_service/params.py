"""Declared parameters: a struct of typed fields says what a request may carry; validation and OpenAPI follow from it.

A field's type is a text type of this module (or one with the same two methods), a ``Literal``, either of them or
``None``, or a tuple of them for what may stand several times or as a comma list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import NoneType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from tools.tornado_service.errors import ApiError, CommonCodes
from tools.window import FORMS, Window, WindowError, parse_window
from tools.zones import UTC_ZONE, Zone, zone_of

Q = TypeVar("Q", bound=Struct)

MAX_PARAMETER_LENGTH = 2048


class Text(str):
    """Text of a request under a pattern; subclasses say which."""

    pattern: ClassVar[str] = r"[^\x00-\x1f\x7f]{1,253}"
    what: ClassVar[str] = "1 to 253 printable characters"
    most: ClassVar[int] = 100
    """How many of them one parameter may have, where it may have several."""
    longest: ClassVar[int] = MAX_PARAMETER_LENGTH
    listed: ClassVar[bool] = True
    """Whether several of them may stand as a comma list."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value.

        Raises:
            ValueError: saying what it must be.
        """
        if not re.fullmatch(cls.pattern, text, re.ASCII):
            raise ValueError(f"must be {cls.what}")
        return cls(text)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{cls.pattern}$", "description": cls.what}


class Uuid(Text):
    """A UUID in canonical form; the ids of accounts, organizations and clusters."""

    pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    what = "a UUID in canonical form (lower case, dashes)"


class DnsLabel(Text):
    """A Kubernetes name (DNS-1123 label)."""

    pattern = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    what = "a Kubernetes name: at most 63 lower case letters, digits and dashes"


class FilterText(Text):
    """A value to filter by: compared, never interpreted."""

    pattern = r"[^\x00-\x1f\x7f]{1,63}"
    what = "1 to 63 printable characters"


class RowFilter(Text):
    """The name of a node or of anything else that rows carry: compared, never interpreted."""


class Cell(Text):
    """A field of a form, empty or not; of a table in it each row has one. Tabs and line ends are read as spaces."""

    pattern = r"[^\x00-\x1f\x7f]{0,10000}"
    what = "at most 10000 printable characters"
    longest = 10_000
    most = 500
    listed = False

    @classmethod
    def parse(cls, text: str) -> Self:
        return super().parse(re.sub(r"[\t\r\n]+", " ", text))


class Step(Text):
    """Seconds, or a number with a unit."""

    pattern = r"[1-9][0-9]{0,6}[smhd]?"
    what = "seconds, or a number with s, m, h or d"

    @property
    def seconds(self) -> int:
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(self[-1])
        return int(self[:-1]) * unit if unit else int(self)


class Stamp(Text):
    pattern = r"[1-9][0-9]{0,9}"
    what = "Unix seconds"


class Currency(Text):
    pattern = "[A-Z]{3}"
    what = "a currency (ISO 4217)"


class Month(Text):
    pattern = r"[0-9]{4}-(0[1-9]|1[0-2])"
    what = "a month such as 2026-11"


class Minutes(Text):
    """Of the last two days."""

    pattern = r"[1-9][0-9]{0,2}|1[0-9]{3}|2[0-7][0-9]{2}|28[0-7][0-9]|2880"
    what = "a whole number of minutes, 1 to 2880"


class Groups(Text):
    """How many of the dearest rows each step tells."""

    pattern = r"[1-9]|[1-4][0-9]|50"
    what = "a whole number from 1 to 50"


class Flag(Text):
    pattern = r"true|false"
    what = "true or false"


class TimeZone(Text):
    """Whose days, weeks and months are meant."""

    pattern = r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}"
    what = "the IANA name of a time zone, like Europe/Berlin or UTC"

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = super().parse(text)
        zone_of(parsed)
        return parsed

    @property
    def zone(self) -> Zone:
        return zone_of(self)


class WindowQuery(Struct, frozen=True, kw_only=True):
    """The two ways to give a window; ``start_time`` and ``end_time`` mean the same as the dates."""

    window: str | None = None
    start_date: str | None = None
    end_date: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    timezone: TimeZone | None = None

    @property
    def zone(self) -> Zone:
        return self.timezone.zone if self.timezone else UTC_ZONE

    def resolve(self, now: float, default: str | None = None) -> Window:
        """The window, normalised.

        Raises:
            WindowError
        """
        dates = [self.start_date, self.end_date]
        times = [self.start_time, self.end_time]
        names = ("start_date", "end_date")
        if any(times):
            if any(dates):
                raise WindowError("give either dates or times, not both", "start_date", "start_time")
            dates, names = times, ("start_time", "end_time")
        if self.window is None and dates == [None, None]:
            if default is None:
                raise MissingWindow("start_date and end_date, or window, are required", "start_date", "end_date")
            return parse_window(now, window=default, zone=self.zone)
        return parse_window(now, window=self.window, start=dates[0], end=dates[1], names=names, zone=self.zone)


class MissingWindow(WindowError):
    """No window at all was given."""


_WINDOW_HELP = {
    "window": FORMS,
    "start_date": "Unix seconds, UTC",
    "end_date": "Unix seconds, UTC; the window is half open",
    "start_time": "the same as start_date",
    "end_time": "the same as end_date",
}


class _Parameter(Struct, frozen=True):
    """What a declaration says of one parameter, worked out once."""

    field: str
    name: str
    """As it stands in a request."""
    element: Any
    several: bool
    required: bool


@lru_cache
def _declared(query: type[Struct]) -> dict[str, _Parameter]:
    """The parameters of a query by name."""
    hints = get_type_hints(query)
    found = {}
    for field in msgspec.structs.fields(query):
        element, several = _plain(hints[field.name])
        found[field.encode_name] = _Parameter(field.name, field.encode_name, element, several, field.required)
    return found


def _plain(kind: Any) -> tuple[Any, bool]:
    """A field's element type and whether it may stand several times."""
    options = [option for option in get_args(kind) if option is not NoneType] if NoneType in get_args(kind) else [kind]
    kind = options[0]
    if get_origin(kind) is tuple:
        return get_args(kind)[0], True
    return kind, False


def _convert(kind: Any, text: str) -> Any:
    """One value of a declared type.

    Raises:
        ValueError: saying what it must be.
    """
    longest = getattr(kind, "longest", MAX_PARAMETER_LENGTH)
    if len(text) > longest:
        raise ValueError(f"is longer than {longest} characters")
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"must be one of {', '.join(get_args(kind))}")
        return text
    return text if kind is str else kind.parse(text)


def read_query(
    query: type[Q], arguments: Mapping[str, Sequence[bytes]], path: Mapping[str, str], codes: CommonCodes
) -> Q:
    """A request's parameters as the declared struct.

    Raises:
        ApiError: unknown, missing, repeated or invalid parameters, each named.
    """
    declared = _declared(query)
    unknown = [name for name in arguments if name not in declared or name in path]
    if unknown:
        shown = [name[:64] for name in sorted(unknown)]
        raise ApiError(codes.unknown_parameter, f"unknown parameters: {', '.join(shown)}", shown)
    values: dict[str, Any] = {}
    for name, parameter in declared.items():
        given: Sequence[bytes | str] = [path[name]] if name in path else arguments.get(name, ())
        if not given:
            if parameter.required:
                raise ApiError(codes.missing_parameter, f"{name} is required", [name])
            continue
        try:
            values[parameter.field] = _read(parameter, given)
        except ValueError as problem:
            reason = "is not UTF-8" if isinstance(problem, UnicodeDecodeError) else str(problem)
            raise ApiError(codes.invalid_parameter, f"{name} {reason}", [name]) from None
    return query(**values)


def _read(parameter: _Parameter, given: Sequence[bytes | str]) -> Any:
    texts = [one if isinstance(one, str) else one.decode("utf-8") for one in given]
    if not parameter.several:
        if len(texts) > 1:
            raise ValueError("may stand only once")
        return _convert(parameter.element, texts[0])
    parts = texts
    if getattr(parameter.element, "listed", True):
        parts = [part for text in texts for part in text.split(",")]
        if len(set(parts)) != len(parts):
            raise ValueError("names the same thing twice")
    most = getattr(parameter.element, "most", Text.most)
    if len(parts) > most:
        raise ValueError(f"has more than {most} values")
    return tuple(_convert(parameter.element, part) for part in parts)


def resolve_window(query: WindowQuery, now: float, codes: CommonCodes, default: str | None = None) -> Window:
    """The window of a request.

    Raises:
        ApiError: naming the parameter, or both of a pair.
    """
    try:
        return _resolved(query, int(now), default)
    except MissingWindow as problem:
        raise ApiError(codes.missing_parameter, problem.reason, problem.params) from None
    except WindowError as problem:
        raise ApiError(codes.invalid_parameter, problem.reason, problem.params) from None


class AgainstQuery(WindowQuery, frozen=True, kw_only=True):
    """``against`` takes what ``window`` takes; without it, it is as much time just before."""

    against: str | None = None


def against_of(query: AgainstQuery, window: Window, now: float, codes: CommonCodes) -> Window:
    """What a window is compared with.

    Raises:
        ApiError
    """
    if query.against is None:
        span = window.end - window.start
        return Window(window.start - span, window.start, window.start, zone=window.zone)
    return resolve_window(WindowQuery(window=query.against, timezone=query.timezone), now, codes)


@lru_cache(512)
def _resolved(query: WindowQuery, now: int, default: str | None) -> Window:
    """Within a second the same question has the same window."""
    return query.resolve(now, default)


def parameters(query: type[Struct], path: Sequence[str]) -> list[dict[str, Any]]:
    """OpenAPI parameters of a declared query."""
    listed = []
    for parameter in _declared(query).values():
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if get_origin(parameter.element) is Literal:
            schema = {"type": "string", "enum": list(get_args(parameter.element))}
        elif hasattr(parameter.element, "schema"):
            schema = parameter.element.schema()
        if parameter.field in _WINDOW_HELP:
            schema["description"] = _WINDOW_HELP[parameter.field]
        in_path = parameter.name in path
        listed.append(
            {
                "name": parameter.name,
                "in": "path" if in_path else "query",
                "required": in_path or parameter.required,
                "schema": {"type": "array", "items": schema} if parameter.several else schema,
            }
        )
    return listed
