"""Allocations as Kubecost and OpenCost answer them, decoded into columns; only the fields that are used.

The body is hostile: numbers must be finite and no larger than what can be summed, costs not negative (but for idle,
adjustments and credits), keys may be missing, null or twice. A row that cannot be read is counted and left out, never
guessed at. An answer is decoded into rows of plain floats and set by set made into columns; bounds are checked on whole
columns, which costs a tenth of checking each value.
"""

from __future__ import annotations

import gc
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise, starmap
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Raw, Struct, defstruct
from msgspec.structs import astuple

from metroculus.cost_model.allocation import IDLE
from metroculus.cost_model.columns import BITS, Allocations, Bits, Coded, Floats, Mask
from metroculus.cost_model.components import COMPONENTS, MEASURES
from metroculus.cost_model.reading import AllocationSet
from metroculus.cost_model.settle import ROUNDING_USD
from metroculus.sources.answers.allocation_texts import NULL, Texts, read_texts
from metroculus.sources.answers.envelope import (
    MALFORMED,
    Envelope,
    Span,
    Window,
    malformed,
    open_envelope,
    warnings_of,
)
from metroculus.sources.errors import BadAnswer
from metroculus.sources.numbers import MAX_QUANTITY, MAX_USD
from tools.window import parse_rfc3339

ABSENT = -math.inf
"""A key that is not there; null is NaN. JSON can hold neither."""

_NUMBERS = tuple(
    dict.fromkeys(["minutes", "totalCost", *(key for one in MEASURES for key in (one.upstream, one.adjustment) if key)])
)
"""The upstream's keys of numbers, in the order of the columns that they become."""
_Row: Any = defstruct(
    "_Row",
    [
        ("window", Raw),
        ("name", str | None, None),
        ("properties", Raw, NULL),
        ("start", str | None, None),
        ("end", str | None, None),
        *((key, float | None, ABSENT) for key in _NUMBERS),
    ],
    gc=False,
)

_ANSWER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    defstruct("_Answer", [("data", list[dict[str, _Row] | None] | None, None)], bases=(Envelope,))
)
_RAW_SETS = msgspec.json.Decoder(list[dict[str, Raw] | None] | None)
_ROW = msgspec.json.Decoder(_Row)
_WINDOW = msgspec.json.Decoder(Window | None)


class Decoded(Struct, frozen=True):
    """Sets as they came, with what the upstream warned of."""

    sets: tuple[AllocationSet, ...]
    warnings: tuple[str, ...]


ROWS_TOGETHER = 1024
"""Small sets are made into columns together, up to so many rows: an array of 8 rows takes as long as one of 100."""

_NamedSet: TypeAlias = "tuple[dict[str, Any], int]"
"""A set's rows by name, and how many others of it could not be decoded."""


class _Set(Struct, frozen=True):
    """A set, and how many of its rows that should say something could not be read."""

    set: AllocationSet
    unreadable: int


def decode_allocation(source: str, body: bytes, aggregate: Sequence[str]) -> Decoded:
    """The sets of an allocation answer, those without allocations left out.

    Args:
        aggregate: what was asked for; names are read by it where properties are missing.

    Raises:
        BadAnswer: not an allocation answer at all, no row of it that can be read, or sets that overlap.
    """
    with _without_collector():
        return _decode(source, body, aggregate)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Rows are plain values without cycles: looking for some among hundreds of thousands takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _decode(source: str, body: bytes, aggregate: Sequence[str]) -> Decoded:
    named_sets, warnings = _row_sets(source, body)
    if any(broken for _, broken in named_sets) or _objects_of_rows(body) != sum(len(named) for named, _ in named_sets):
        _refuse_repeated_keys(source, body)
    found = [_unreadable(broken) for named, broken in named_sets if broken and not named]
    named_sets = [one for one in named_sets if one[0]]
    keyed = [item for named, _ in named_sets for item in named.items()]
    texts = read_texts(
        (row.name if row.name is not None else key for key, row in keyed),
        (row.properties for _, row in keyed),
        aggregate,
    )
    end = len(keyed)
    del keyed
    while named_sets:  # from the last, so that the rows of sets are let go of once they are columns
        some = _pop_some(named_sets)
        start = end - sum(len(named) for named, _ in some)
        found += _read_sets(some, texts.take(slice(start, end)))
        end = start
        del some
    sets = sorted((one.set for one in found), key=lambda one: one.start)
    if any(one.unreadable for one in found) and all(one.columns.is_special(IDLE).all() for one in sets):
        raise BadAnswer(f"{source} answered with rows of which none can be read")
    for before, after in pairwise(sets):
        if after.start < before.end:
            raise BadAnswer(f"{source} answered with sets that overlap")
    return Decoded(tuple(sets), warnings)


def _pop_some(named_sets: list[_NamedSet]) -> list[_NamedSet]:
    """The last set, and those before it as long as they have no more rows than are read together; in their order."""
    some = [named_sets.pop()]
    rows = len(some[0][0])
    while named_sets and rows + len(named_sets[-1][0]) <= ROWS_TOGETHER:
        some.append(named_sets.pop())
        rows += len(some[-1][0])
    return some[::-1]


def _read_sets(named_sets: Sequence[_NamedSet], texts: Texts) -> Iterator[_Set]:
    """Some sets, none of them empty, whose rows are made into columns together."""
    read = _Rows.read([row for named, _ in named_sets for row in named.values()], texts)
    first = 0
    for named, broken in named_sets:
        yield _set_of(read, slice(first, first + len(named)), broken)
        first += len(named)


def _unreadable(rows: int) -> _Set:
    """A set of which no row can be read."""
    return _Set(AllocationSet(0, 0, (), rows), rows)


_WINDOW_KEY = b'"window"'
_ESCAPED_LETTERS = (b"\\u006", b"\\u007")
"""How a key could be spelled that is ``window`` and does not look like it."""


def _objects_of_rows(body: bytes) -> int:
    """How many rows the answer's bytes hold, each of which has one window; -1 where that cannot be told so.

    A label of that name makes them too many, never too few.
    """
    # Looking for one byte is the only search that costs next to nothing in a large answer; most have no escape at all.
    if b"\\" in body and any(letter in body for letter in _ESCAPED_LETTERS):
        return -1
    return body.count(_WINDOW_KEY)


def _row_sets(source: str, body: bytes) -> tuple[list[_NamedSet], tuple[str, ...]]:
    """Each set's rows by name with the number of those that cannot be decoded, and the answer's warnings.

    Raises:
        BadAnswer
    """
    try:
        answer = _ANSWER.decode(body)
    except MALFORMED:
        pass
    else:
        if answer.code == 200:
            return [(one or {}, 0) for one in answer.data or ()], warnings_of(answer)
    data, warnings = open_envelope(source, body)
    try:
        raw_sets = _RAW_SETS.decode(data) or []
    except MALFORMED:
        raise malformed(source) from None
    return [_rows_one_by_one(raw or {}) for raw in raw_sets], warnings


def _rows_one_by_one(raws: Mapping[str, Raw]) -> _NamedSet:
    rows: dict[str, Any] = {}
    for name, one in raws.items():
        try:
            rows[name] = _ROW.decode(one)
        except MALFORMED:
            continue
    return rows, len(raws) - len(rows)


def _refuse_repeated_keys(source: str, data: bytes) -> None:
    """A set or a row that stands twice under one key would be lost unseen.

    With as many windows as rows no row does, and this is not called.

    Raises:
        BadAnswer
    """

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            raise BadAnswer(f"{source} answered with the same key twice")

    try:
        json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return


class _Rows(Struct, frozen=True):
    """Rows of one set or of several as columns, with a mask for each reason to leave a row out."""

    allocations: Allocations
    windows: Coded[Span | None]
    is_idle: Mask
    refused: Mask
    silent: Mask
    disagreement: Floats
    """USD by which a row's own total differs from the sum of its parts, where rounding does not explain it."""

    @staticmethod
    def read(rows: list[Any], texts: Texts) -> _Rows:
        windows = Coded.of(map(bytes, map(attrgetter("window"), rows))).map_to(_span)
        numbers, beyond = _bounded(_numbers_of(rows))
        window_from = windows.map(lambda span: span[0] if span else 0, np.int64)
        window_until = windows.map(lambda span: span[1] if span else 0, np.int64)
        started = _stamps(map(attrgetter("start"), rows), window_from)
        ended = _stamps(map(attrgetter("end"), rows), window_until)
        minutes = np.where(np.isfinite(numbers["minutes"]), numbers["minutes"], (ended - started) / 60)
        minutes = np.clip(minutes, 0.0, (window_until - window_from) / 60)
        measures, unknown = _measures(numbers, minutes)
        refused = beyond | _negative(numbers, texts.is_idle) | texts.unread
        refused |= windows.map(lambda span: span is None, bool)
        allocations = Allocations(measures, unknown, started, ended, texts.columns)
        _ = allocations.ran  # once for all sets, each of which takes its part of it
        silent, apart = _says_nothing(measures, unknown), _disagreement(numbers["totalCost"], allocations)
        return _Rows(allocations, windows, texts.is_idle, refused, silent, apart)


def _set_of(read: _Rows, rows: slice, broken: int) -> _Set:
    """One of the sets whose rows were read together."""
    refused, silent, is_idle = read.refused[rows], read.silent[rows], read.is_idle[rows]
    keep = ~(refused | silent)
    if silent.any() and not (keep & ~is_idle).any():
        keep &= False  # nobody's cost is known: idle alone would stand for all of it
    window = _hull(read.windows.take(rows), keep)
    if window is None:
        return _unreadable(broken + len(keep))
    allocations = read.allocations if len(keep) == len(read.allocations) else read.allocations.take(rows)
    kept = allocations if keep.all() else allocations.take(keep)
    left_out = broken + int((~keep).sum())
    disagreement = float(read.disagreement[rows][keep].sum())
    return _Set(AllocationSet(*window, kept, left_out, disagreement), broken + int(refused.sum()))


def _hull(windows: Coded[Span | None], keep: Mask) -> Span | None:
    """The window of a set by the rows that are kept: one that cannot be read does not widen it; else by all.

    None where no row has a window that can be read.
    """
    codes = windows.codes[keep] if keep.any() else windows.codes
    spans = [span for span in (windows.values[code] for code in set(codes.tolist())) if span is not None]
    return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None


_MOST = {"minutes": MAX_QUANTITY, "totalCost": MAX_USD} | {
    key: MAX_USD if one.unit == "USD" else MAX_QUANTITY
    for one in MEASURES
    for key in (one.upstream, one.adjustment)
    if key
}
"""By key, what no number may be beyond."""

_numbers_only = itemgetter(slice(len(_Row.__struct_fields__) - len(_NUMBERS), None))
_pack = struct.Struct(f"={len(_NUMBERS)}d").pack


def _numbers_of(rows: Sequence[Any]) -> dict[str, Floats]:
    """The numbers of all rows by key; null is NaN."""
    numbers = map(_numbers_only, map(astuple, rows))
    try:
        packed = b"".join(starmap(_pack, numbers))
    except struct.error:  # some are null
        matrix = np.array([_numbers_only(astuple(row)) for row in rows], dtype=np.float64)
    else:
        matrix = np.frombuffer(packed, dtype=np.float64).reshape(len(rows), len(_NUMBERS))
    return dict(zip(_NUMBERS, np.ascontiguousarray(matrix.T), strict=True))


LONGEST_WINDOW = 256
"""Bytes of a window that is remembered; a real one has about seventy."""


def _span(window: bytes) -> Span | None:
    return _remembered_span(window) if len(window) <= LONGEST_WINDOW else _read_span(window)


def _read_span(window: bytes) -> Span | None:
    try:
        decoded = _WINDOW.decode(window)
    except MALFORMED:
        return None
    return decoded.span if decoded is not None else None


_remembered_span = lru_cache(maxsize=4096)(_read_span)


def _stamps(texts: Iterable[str | None], otherwise: Any) -> Any:
    stamps = Coded.of(texts).map(lambda text: (parse_rfc3339(text) or 0) if text else 0, np.int64)
    return np.where(stamps > 0, stamps, otherwise)


def _measures(numbers: Mapping[str, Floats], minutes: Floats) -> tuple[Floats, Bits]:
    """The matrix of measures, and the bits of what is unknown.

    Of a cost whose adjustment is null the rest counts, and the cost is unknown; an average over no time is nothing.
    """
    measures = np.empty((len(MEASURES), len(minutes)), dtype=np.float64)
    unknown = np.zeros(len(minutes), dtype=np.uint64)
    for line, one in enumerate(MEASURES):
        given = numbers[one.upstream]
        absent = np.isneginf(given)
        lacks = np.isnan(given) | absent if one.required or one.kind != "cost" else np.isnan(given)
        values = np.where(np.isfinite(given), given, 0.0)
        if one.adjustment:
            added = numbers[one.adjustment]
            values = values + np.where(np.isfinite(added) & ~lacks, added, 0.0)
            lacks = lacks | np.isnan(added)
        if one.times_minutes:
            values = values * minutes
            lacks = lacks & (minutes > 0)
        measures[line] = values / one.divisor
        unknown[lacks] |= np.uint64(BITS[one.name])
    return measures, unknown


def _bounded(numbers: Mapping[str, Floats]) -> tuple[dict[str, Floats], Mask]:
    """Numbers that every sum can hold, and the rows that said larger ones, which stand at their bound here."""
    bounded = dict(numbers)
    refused = np.zeros(len(numbers["minutes"]), dtype=bool)
    for key, most in _MOST.items():
        given = numbers[key]
        beyond = np.isfinite(given) & (np.abs(given) > most)
        if beyond.any():
            refused |= beyond
            bounded[key] = np.where(beyond, most, given)
    return bounded, refused


def _negative(numbers: Mapping[str, Floats], is_idle: Mask) -> Mask:
    """Rows that say a cost below zero, where that cannot be."""
    refused = np.zeros(len(is_idle), dtype=bool)
    for one in MEASURES:
        if one.kind == "cost" and not one.may_be_negative:
            given = numbers[one.upstream]
            refused |= np.isfinite(given) & (given < -ROUNDING_USD) & ~is_idle
    return np.asarray(refused)


_REQUIRED_BITS = np.uint64(sum(BITS[one.name] for one in MEASURES if one.required))
_COST_BITS = np.uint64(sum(BITS[name] for name in COMPONENTS))


def _says_nothing(measures: Floats, unknown: Bits) -> Mask:
    """Rows of which no cost is known, or none but zeros beside unknown cpu and ram."""
    nothing = (unknown & _COST_BITS) == _COST_BITS
    lacking = (unknown & _REQUIRED_BITS) == _REQUIRED_BITS
    return np.asarray(nothing | (lacking & ~measures[: len(COMPONENTS)].any(axis=0)))


def _disagreement(totals: Floats, allocations: Allocations) -> Floats:
    """By row: USD by which the source's own total differs from the sum of its parts, 0 where rounding explains it."""
    apart = np.abs(totals - allocations.costs.sum(axis=0))
    comparable = np.isfinite(totals) & ((allocations.unknown & _COST_BITS) == 0)
    return np.where(comparable & (apart > len(COMPONENTS) * ROUNDING_USD), apart, 0.0)
