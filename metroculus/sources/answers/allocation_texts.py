"""Texts of allocations as Kubecost and OpenCost answer them: names and properties, decoded into coded columns.

The same pods stand in each set of an answer, so every distinct pair of a name and properties is read once, whichever
sets and however many rows hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from msgspec.structs import astuple

from metroculus.cost_model.columns import EMPTY, Coded, Mask, idle_rows, key_of
from metroculus.sources.answers.envelope import MALFORMED

MAX_NAME_LENGTH = 1024
MAX_NAMESPACE_LENGTH = 253

NULL = Raw(b"null")


class _Properties(Struct, rename="camel", gc=False):
    cluster: str | None = None
    node: str | None = None
    container: str | None = None
    controller: str | None = None
    controller_kind: str | None = None
    namespace: str | None = None
    pod: str | None = None
    services: Raw = NULL
    labels: Raw = NULL
    annotations: Raw = NULL


_PROPERTIES = msgspec.json.Decoder(_Properties | None)
_SET_DECODERS: Mapping[str, Any] = {
    "services": msgspec.json.Decoder(tuple[str, ...] | None),
    "labels": msgspec.json.Decoder(dict[str, str] | None),
    "annotations": msgspec.json.Decoder(dict[str, str] | None),
}
_NO_PROPERTIES = astuple(_Properties())

_TEXT_FIELDS = (
    ("cluster", "cluster"), ("node", "node"), ("container", "container"), ("controller", "controller"),
    ("controller_kind", "controllerKind"), ("namespace", "namespace"), ("pod", "pod"),
)  # fmt: skip
"""Columns that ``_Properties`` begins with, and what a part of a name is called that tells the same."""

_TOLD_BY_PROPERTIES = frozenset({"namespace", "pod", "cluster", "node", "controller", "controllerKind"})


class Texts(Struct, frozen=True):
    """Coded columns of texts of some rows, with what they say of a row.

    ``is_idle`` and ``unread`` have a truth for each row; an unread row has properties or a name that cannot be used.
    """

    columns: Mapping[str, Coded[Any]]
    is_idle: Mask
    unread: Mask

    def take(self, rows: Any) -> Texts:
        """Some rows; their columns hold few values that no row has."""
        columns = {field: _compact(column.take(rows)) for field, column in self.columns.items()}
        return Texts(columns, self.is_idle[rows], self.unread[rows])


def _compact(column: Coded[Any]) -> Coded[Any]:
    """The column without most values that stand in no row, where these are many: work on values is work on rows."""
    if len(column.values) <= 2 * len(column.codes) + 1:
        return column
    present, codes = np.unique(column.codes, return_inverse=True)
    return Coded(codes.astype(np.int32), [column.values[code] for code in present.tolist()])


def read_texts(names: Iterable[str], properties: Iterable[Raw], aggregate: Sequence[str]) -> Texts:
    """The texts of all rows of an answer.

    Args:
        aggregate: what was asked for; names are read by it where properties are missing.
    """
    named, raw_properties = Coded.of(names), Coded.of(map(bytes, properties))
    pairs = named.codes.astype(np.int64) * len(raw_properties.values) + raw_properties.codes
    distinct, rows = np.unique(pairs, return_inverse=True)
    names_of = [named.values[pair] for pair in (distinct // max(1, len(raw_properties.values))).tolist()]
    decoded = [_decoded_properties(raw) for raw in raw_properties.values]
    properties_of = [decoded[pair] for pair in (distinct % max(1, len(raw_properties.values))).tolist()]
    return _texts(names_of, properties_of, aggregate).take(rows)


def _decoded_properties(raw: bytes) -> tuple[Any, ...] | None:
    """The fields of ``_Properties``; None where they cannot be read."""
    try:
        found = _PROPERTIES.decode(raw)
    except MALFORMED:
        return None
    return astuple(found) if found is not None else _NO_PROPERTIES


def _texts(names: list[str], properties: Sequence[tuple[Any, ...] | None], aggregate: Sequence[str]) -> Texts:
    """Columns of properties, and of what names tell where those lack it."""
    unread = np.array([one is None for one in properties], dtype=bool)
    fields = [_NO_PROPERTIES if one is None else one for one in properties]
    given: list[Sequence[Any]] = list(zip(*fields, strict=True)) or [()] * len(_NO_PROPERTIES)
    parts = _name_parts(names, given[_NAMESPACE], given[_POD], aggregate)
    columns: dict[str, Coded[Any]] = {"name": Coded.of(names), "pods": Coded.same(EMPTY["pods"], len(names))}
    for (field, key), column in zip(_TEXT_FIELDS, given, strict=False):
        values: Sequence[str | None] = column
        if parts:
            patched = list(column)
            for row, of_name in parts.items():
                patched[row] = _first(field, column[row], of_name.get(key))
            values = patched
        coded = Coded.of(values)
        columns[field] = coded.texts(lambda value: value or "") if None in coded.values else coded
    for (field, decoder), raws in zip(_SET_DECODERS.items(), given[len(_TEXT_FIELDS) :], strict=True):
        columns[field], broken = _decoded(field, raws, decoder)
        unread |= broken
    if parts:
        columns |= _sets_of_names(columns, parts)
    unread |= columns["name"].map(lambda name: len(name) > MAX_NAME_LENGTH, bool)
    unread |= columns["namespace"].map(lambda name: len(name) > MAX_NAMESPACE_LENGTH or "/" in name, bool)
    return Texts(columns, idle_rows(columns["name"]), unread)


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
    if all(raw is NULL for raw in raws):
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
