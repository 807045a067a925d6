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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct, defstruct
from msgspec.structs import astuple

from metroculus.cost_model.allocation import IDLE
from metroculus.cost_model.columns import BITS, EMPTY, Allocations, Bits, Coded, Floats, Mask, idle_rows, key_of
from metroculus.cost_model.components import COMPONENTS, MEASURES
from metroculus.cost_model.reading import AllocationSet
from metroculus.cost_model.settle import ROUNDING_USD
from metroculus.sources.errors import BadAnswer
from metroculus.sources.kubecost.envelope import (
    MALFORMED,
    Envelope,
    Span,
    Window,
    malformed,
    open_envelope,
    warnings_of,
)
from metroculus.sources.numbers import MAX_QUANTITY, MAX_USD
from tools.window import parse_rfc3339_utc

MAX_NAME_LENGTH = 1024
MAX_NAMESPACE_LENGTH = 253

ABSENT = -math.inf
"""A key that is not there; null is NaN. JSON can hold neither."""

_NULL = Raw(b"null")


class _Properties(Struct, rename="camel", gc=False):
    cluster: str | None = None
    node: str | None = None
    container: str | None = None
    controller: str | None = None
    controller_kind: str | None = None
    namespace: str | None = None
    pod: str | None = None
    services: Raw = _NULL
    labels: Raw = _NULL
    annotations: Raw = _NULL


_NUMBERS = tuple(
    dict.fromkeys(["minutes", "totalCost", *(key for one in MEASURES for key in (one.upstream, one.adjustment) if key)])
)
"""The upstream's keys of numbers, in the order of the columns that they become."""
_Row: Any = defstruct(
    "_Row",
    [
        ("window", Raw),
        ("name", str | None, None),
        ("properties", _Properties | None, None),
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
_TEXTS: Mapping[str, Any] = {
    "services": msgspec.json.Decoder(tuple[str, ...] | None),
    "labels": msgspec.json.Decoder(dict[str, str] | None),
    "annotations": msgspec.json.Decoder(dict[str, str] | None),
}

_TOLD_BY_PROPERTIES = frozenset({"namespace", "pod", "cluster", "node", "controller", "controllerKind"})


class Decoded(Struct, frozen=True):
    """Sets as they came, with what the upstream warned of."""

    sets: tuple[AllocationSet, ...]
    warnings: tuple[str, ...]


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
    found: list[_Set] = []
    rows = 0
    while named_sets:
        named, broken = named_sets.pop()
        rows += len(named) + broken
        read = _read_set(named, broken, aggregate)
        if read is not None:
            found.append(read)
        del named
    if body.count(b'"window"') != rows:
        _refuse_repeated_keys(source, body)
    sets = sorted((one.set for one in found), key=lambda one: one.start)
    if any(one.unreadable for one in found) and all(one.columns.is_special(IDLE).all() for one in sets):
        raise BadAnswer(f"{source} answered with rows of which none can be read")
    for before, after in pairwise(sets):
        if after.start < before.end:
            raise BadAnswer(f"{source} answered with sets that overlap")
    return Decoded(tuple(sets), warnings)


def _row_sets(source: str, body: bytes) -> tuple[list[tuple[dict[str, Any], int]], tuple[str, ...]]:
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


def _rows_one_by_one(raws: Mapping[str, Raw]) -> tuple[dict[str, Any], int]:
    rows: dict[str, Any] = {}
    for name, one in raws.items():
        try:
            rows[name] = _ROW.decode(one)
        except MALFORMED:
            continue
    return rows, len(raws) - len(rows)


def _refuse_repeated_keys(source: str, data: bytes) -> None:
    """A key that stands twice in one object would lose a cost unseen.

    With as many windows as rows there is nothing to look for, and this is not called.

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


def _read_set(named: dict[str, Any], broken: int, aggregate: Sequence[str]) -> _Set | None:
    """A set as columns; None where there is no row at all."""
    if not named:
        return _Set(AllocationSet(0, 0, (), broken), broken) if broken else None
    rows = list(named.values())
    windows = Coded.of(map(bytes, map(attrgetter("window"), rows))).map_to(_span)
    placed = [span for span in windows.values if span is not None]
    if not placed:
        return _Set(AllocationSet(0, 0, (), broken + len(rows)), broken + len(rows))
    start, end = min(s for s, _ in placed), max(e for _, e in placed)
    numbers = _numbers_of(rows)
    names = [row.name if row.name is not None else key for key, row in named.items()]
    texts, unread = _texts(names, [row.properties for row in rows], aggregate)
    window_from = windows.map(lambda span: span[0] if span else 0, np.int64)
    window_until = windows.map(lambda span: span[1] if span else 0, np.int64)
    started = _stamps([row.start for row in rows], window_from)
    ended = _stamps([row.end for row in rows], window_until)
    minutes = np.where(np.isfinite(numbers["minutes"]), numbers["minutes"], (ended - started) / 60)
    minutes = np.clip(minutes, 0.0, (window_until - window_from) / 60)
    measures, unknown = _measures(numbers, minutes)
    is_idle = idle_rows(texts["name"])
    refused = _refused(numbers, is_idle, texts) | unread | windows.map(lambda span: span is None, bool)
    silent = _says_nothing(measures, unknown)
    keep = ~(refused | silent)
    if silent.any() and not (keep & ~is_idle).any():
        keep &= False  # nobody's cost is known: idle alone would stand for all of it
    allocations = Allocations(measures, unknown, started, ended, texts)
    kept = allocations if keep.all() else allocations.take(keep)
    left_out = broken + int((~keep).sum())
    disagreement = _disagreement(numbers["totalCost"][keep], kept)
    return _Set(AllocationSet(start, end, kept, left_out, disagreement), broken + int(refused.sum()))


_MOST = {"minutes": MAX_QUANTITY, "totalCost": MAX_USD} | {
    key: MAX_USD if one.unit == "USD" else MAX_QUANTITY
    for one in MEASURES
    for key in (one.upstream, one.adjustment)
    if key
}
"""By key, what no number may be beyond."""

_READERS = tuple(map(attrgetter, _NUMBERS))
_BLOCK_ROWS = 512
"""Rows that are gone through at once, so that they stay in the processor's cache from one number to the next."""


def _numbers_of(rows: Sequence[Any]) -> dict[str, Floats]:
    """The numbers of all rows by key; null is NaN."""
    matrix = np.empty((len(_NUMBERS), len(rows)), dtype=np.float64)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = rows[first : first + _BLOCK_ROWS]
        for line, read in zip(matrix[:, first : first + _BLOCK_ROWS], _READERS, strict=True):
            try:
                line[:] = np.fromiter(map(read, block), dtype=np.float64, count=len(block))
            except TypeError:  # some are null
                line[:] = list(map(read, block))
    return dict(zip(_NUMBERS, matrix, strict=True))


@lru_cache(maxsize=4096)
def _span(window: bytes) -> Span | None:
    try:
        decoded = _WINDOW.decode(window)
    except MALFORMED:
        return None
    return decoded.span if decoded is not None else None


@lru_cache(maxsize=65536)
def _stamp(text: str) -> int:
    """Unix seconds, 0 where it is no stamp."""
    return parse_rfc3339_utc(text) or 0


def _stamps(texts: Sequence[str | None], otherwise: Any) -> Any:
    stamps = Coded.of(texts).map(lambda text: _stamp(text) if text else 0, np.int64)
    return np.where(stamps > 0, stamps, otherwise)


def _measures(numbers: Mapping[str, Floats], minutes: Floats) -> tuple[Floats, Bits]:
    """The matrix of measures, and the bits of what is unknown."""
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
        if one.times_minutes:
            values = values * minutes
        measures[line] = values / one.divisor
        unknown[lacks] |= np.uint64(BITS[one.name])
    return measures, unknown


def _refused(numbers: Mapping[str, Floats], is_idle: Mask, texts: Mapping[str, Coded[str]]) -> Mask:
    """Rows that say what cannot be: a cost below zero, a figure that no sum can hold, a name that is none."""
    longest = max(map(len, texts["name"].values))
    refused = np.zeros(len(is_idle), dtype=bool)
    if longest > MAX_NAME_LENGTH:
        refused |= texts["name"].map(lambda name: len(name) > MAX_NAME_LENGTH, bool)
    refused |= texts["namespace"].map(lambda name: len(name) > MAX_NAMESPACE_LENGTH or "/" in name, bool)
    for key, most in _MOST.items():
        given = numbers[key]
        refused |= np.isfinite(given) & (np.abs(given) > most)
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


def _disagreement(totals: Floats, kept: Allocations) -> float:
    """USD by which the source's own totals differ from the sums of their parts, where rounding does not explain it."""
    apart = np.abs(totals - kept.costs.sum(axis=0))
    told = np.isfinite(totals) & ((kept.unknown & _COST_BITS) == 0)
    return float(apart[told & (apart > len(COMPONENTS) * ROUNDING_USD)].sum())


_TEXT_FIELDS = (
    ("cluster", "cluster"), ("node", "node"), ("container", "container"), ("controller", "controller"),
    ("controller_kind", "controllerKind"), ("namespace", "namespace"), ("pod", "pod"),
)  # fmt: skip
"""Columns that ``_Properties`` begins with, and what a part of a name is called that tells the same."""


def _texts(
    names: list[str], properties: Sequence[_Properties | None], aggregate: Sequence[str]
) -> tuple[dict[str, Coded[Any]], Mask]:
    """Columns of texts, of properties and of what names tell where those lack it; and which rows cannot be read."""
    columns = list(zip(*[astuple(one) if one is not None else _NO_PROPERTIES for one in properties], strict=True))
    parts = _name_parts(names, columns[_NAMESPACE], columns[_POD], aggregate)
    texts: dict[str, Coded[Any]] = {"name": Coded.of(names)}
    for (field, key), column in zip(_TEXT_FIELDS, columns, strict=False):
        values: Sequence[str | None] = column
        if parts:
            patched = list(column)
            for row, of_name in parts.items():
                patched[row] = _first(field, column[row], of_name.get(key))
            values = patched
        coded = Coded.of(values)
        texts[field] = coded.texts(lambda value: value or "") if None in coded.values else coded
    unread = np.zeros(len(names), dtype=bool)
    for (field, decoder), raws in zip(_TEXTS.items(), columns[len(_TEXT_FIELDS) :], strict=True):
        texts[field], broken = _decoded(field, raws, decoder)
        unread |= broken
    if parts:
        texts |= _sets_of_names(texts, parts)
    return texts, unread


_NO_PROPERTIES = astuple(_Properties())
_NAMESPACE, _POD = (_Properties.__struct_fields__.index(field) for field in ("namespace", "pod"))


def _first(field: str, of_properties: str | None, of_name: str | None) -> str:
    """A property, else what the name tells; a container's name is truer than its property."""
    if field == "container":
        return of_name or of_properties or ""
    if field == "namespace" and of_properties is not None:
        return of_properties
    return of_properties or (without_kind(of_name or "") if field == "controller" else of_name or "")


def _decoded(field: str, raws: Sequence[Raw], decoder: Any) -> tuple[Coded[Any], Mask]:
    """Label sets or service lists, each distinct one decoded once; and which rows hold something else."""
    if all(raw is _NULL for raw in raws):
        return Coded.same(EMPTY[field], len(raws)), np.zeros(len(raws), dtype=bool)
    by_bytes = Coded.of(map(bytes, raws))
    values, broken = [], []
    for raw in by_bytes.values:
        try:
            value, unread = decoder.decode(raw), False
        except MALFORMED:
            value, unread = None, True
        values.append(value if value is not None else EMPTY[field])
        broken.append(unread)
    made: Coded[Any] = Coded.of(values, key_of(field))
    return Coded(made.codes[by_bytes.codes], made.values), np.array(broken)[by_bytes.codes]


def _name_parts(
    names: list[str], namespaces: Sequence[str | None], pods: Sequence[str | None], aggregate: Sequence[str]
) -> dict[int, dict[str, str]]:
    """By row, its name's parts by what they are; only of rows whose properties do not tell all of them."""
    if not _TOLD_BY_PROPERTIES.issuperset(aggregate or ("container",)):
        return {row: parts_of(name, aggregate) for row, name in enumerate(names)}
    with_pod = "pod" in aggregate
    return {
        row: parts_of(names[row], aggregate)
        for row, (namespace, pod) in enumerate(zip(namespaces, pods, strict=True))
        if namespace is None or (with_pod and pod is None)
    }


def _sets_of_names(texts: Mapping[str, Coded[Any]], parts: Mapping[int, dict[str, str]]) -> dict[str, Coded[Any]]:
    """Services, labels and annotations with those that names tell."""
    made: dict[str, Coded[Any]] = {}
    if any("service" in one for one in parts.values()):
        served = texts["services"].list()
        for row, of_name in parts.items():
            served[row] = served[row] or _single(of_name.get("service"))
        made["services"] = Coded.of(served)
    for field, prefix in (("labels", "label:"), ("annotations", "annotation:")):
        if any(key.startswith(prefix) for one in parts.values() for key in one):
            named = texts[field].list()
            for row, of_name in parts.items():
                named[row] = _named(prefix, of_name, named[row])
            made[field] = Coded.of(named, key_of(field))
    return made


def parts_of(name: str, aggregate: Sequence[str]) -> dict[str, str]:
    """A name's parts by what they are: ``shop/web-1`` of ``namespace,pod``; special and empty parts left out.

    Kubecost may put the cluster in front (``cluster-one/shop``); an annotation, asked for last, may hold slashes.
    """
    if not aggregate:
        aggregate = ("cluster", "node", "namespace", "pod", "container")
    if any(part.startswith("annotation:") for part in aggregate):
        parts = name.split("/", len(aggregate) - 1)
    else:
        parts = name.split("/")[-len(aggregate) :]
    if len(parts) != len(aggregate):
        return {}
    found = dict(zip(aggregate, parts, strict=True))
    return {key: part for key, part in found.items() if key == "namespace" or part[:2] != "__"}


def without_kind(controller: str) -> str:
    """``deployment:web`` is how the upstream names a controller beside other properties."""
    return controller.partition(":")[2] or controller


def _single(text: str | None) -> tuple[str, ...]:
    return (text,) if text else ()


def _named(prefix: str, parts: dict[str, str], properties: dict[str, str]) -> dict[str, str]:
    """Labels or annotations, those that the name tells among them."""
    return {key[len(prefix) :]: part for key, part in parts.items() if key.startswith(prefix) and part} | properties
