"""Assets as Kubecost and OpenCost answer them, decoded into typed values; only the fields that are used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from metroculus.cost_model.assets import UPSTREAM_TYPES, Asset, AssetType, scaled
from metroculus.cost_model.settle import ROUNDING_USD
from metroculus.sources.answers.envelope import MALFORMED, Span, Window, malformed, open_envelope
from metroculus.sources.errors import BadAnswer
from metroculus.sources.numbers import Quantity, Usd
from tools.window import HOUR, parse_rfc3339, split


class _Breakdown(Struct):
    idle: float | None = None


class _AssetProperties(Struct, frozen=True):
    provider: str | None = None
    cluster: str | None = None
    name: str | None = None
    providerID: str | None = None


class _Asset(Struct):
    type: str
    totalCost: Usd
    properties: _AssetProperties = _AssetProperties()
    labels: dict[str, str] | None = None
    window: Window | None = None
    start: str | None = None
    end: str | None = None
    minutes: Quantity | None = None
    nodeType: str | None = None
    cpuCores: Quantity | None = None
    ramBytes: Quantity | None = None
    gpuCount: Quantity | None = None
    preemptible: float | bool | None = None
    cpuCost: Usd | None = None
    ramCost: Usd | None = None
    gpuCost: Usd | None = None
    adjustment: Usd | None = None
    credit: Usd | None = None
    cpuBreakdown: _Breakdown | None = None
    ramBreakdown: _Breakdown | None = None
    bytes: Quantity | None = None
    byteHoursUsed: Quantity | None = None
    byteHours: Quantity | None = None
    storageClass: str | None = None
    volumeName: str | None = None
    claimName: str | None = None
    claimNamespace: str | None = None
    ip: str | None = None


_RAW_LIST = msgspec.json.Decoder(list[dict[str, Raw] | None])
_RAW_OBJECT = msgspec.json.Decoder(dict[str, Raw] | None)
_LIST = msgspec.json.Decoder(list[dict[str, _Asset] | None])
_OBJECT = msgspec.json.Decoder(dict[str, _Asset] | None)
_ROW = msgspec.json.Decoder(_Asset)


class _Kind(Struct):
    """The type alone, of an asset whose other fields cannot be decoded."""

    type: str | None = None


_KIND = msgspec.json.Decoder(_Kind)


_HEAD_BYTES = 2**16
_DATA = re.compile(rb'"data"\s*:\s*(\[(?:\s*\{\s*\}\s*,)*\s*\{\s*"|\{\s*")')
"""The beginning of assets, of which there is at least one."""


Form = Literal["list", "object"]
"""How an answer holds its assets: Kubecost in a list of objects, OpenCost in one object."""
FORMS: Mapping[str, Form] = {"kubecost": "list", "opencost": "object"}


class DecodedAssets(Struct, frozen=True):
    """Assets as they came, each with the window that it is of; None where it did not say."""

    found: tuple[tuple[Span | None, Asset], ...]
    left_out: tuple[AssetType | None, ...] = ()
    """The types of assets that could not be read, and are not in ``found``; None for one that does not say its type."""
    lacking: int = 0
    """Seconds of what was asked that are not told, because they are in hours that reach beyond it."""
    form: Form | None = None

    def only(self, spans: Iterable[Span], seconds: int) -> DecodedAssets:
        """The assets of some spans, out of an answer to a question about so many seconds."""
        kept = set(spans)
        told = sum(end - start for start, end in kept)
        found = tuple((span, asset) for span, asset in self.found if span is None or span in kept)
        return replace(self, found=found, lacking=seconds - told)

    @property
    def assets(self) -> tuple[Asset, ...]:
        return tuple(asset for _, asset in self.found)

    @property
    def spans(self) -> set[Span]:
        return {span for span, _ in self.found if span is not None}


def decode_assets(source: str, body: bytes) -> DecodedAssets:
    """Assets out of either form: Kubecost's list of objects, OpenCost's object.

    One that cannot be read, or costs less than nothing without a credit that explains it, is left out and counted.

    Raises:
        BadAnswer: no asset answer at all, or none of its assets can be read.
    """
    data, _ = open_envelope(source, body)
    in_list = bytes(data).startswith(b"[")
    groups = _groups(source, data, in_list)
    found: list[tuple[Span | None, Asset]] = []
    left_out: list[AssetType | None] = []
    for name, raw in ((name, raw) for one in groups for name, raw in one.items()):
        row = raw if isinstance(raw, _Asset) else _decoded(raw)
        kind = row.type if row is not None else _kind(raw)
        if kind is not None and kind not in UPSTREAM_TYPES:
            continue
        if row is None or _negative_without_credit(row):
            left_out.append(UPSTREAM_TYPES.get(kind or ""))
        else:
            found.append((row.window.span if row.window else None, _asset(name, row)))
    if left_out and not found:
        raise BadAnswer(f"{source} answered with assets of which none can be read")
    form: Form | None = None
    if any(groups):
        form = "list" if in_list else "object"
    return DecodedAssets(tuple(found), tuple(left_out), form=form)


def _groups(source: str, data: Raw, in_list: bool) -> list[dict[str, Any]]:
    """Assets by key; as they came, ``Raw``, where one of them cannot be decoded.

    Raises:
        BadAnswer
    """
    decoders: tuple[msgspec.json.Decoder[Any], ...] = (_LIST, _RAW_LIST) if in_list else (_OBJECT, _RAW_OBJECT)
    for decoder in decoders:
        with suppress(*MALFORMED):
            decoded = decoder.decode(data)
            return [one for one in decoded if one] if in_list else [decoded or {}]
    raise malformed(source)


def form_of(source: str, body: bytes) -> Form | None:
    """How an answer holds its assets; None where it has none.

    Of a large answer the beginning alone is read: opening all of it would hold the loop.

    Raises:
        BadAnswer
    """
    if len(body) <= _HEAD_BYTES:
        open_envelope(source, body)
    found = _DATA.search(body, 0, _HEAD_BYTES)
    if found is None:
        return None
    return "list" if found[1].startswith(b"[") else "object"


def by_hour(decoded: DecodedAssets, start: int, end: int) -> dict[int, list[Asset]]:
    """Assets by UTC hour; hours that begin at half past are divided by time."""
    hours: dict[int, list[Asset]] = {}
    told: dict[int, set[tuple[int, int]]] = {}
    for span, asset in decoded.found:
        if span is not None and span[1] - span[0] == HOUR:
            for first, last in split(max(span[0], start), min(span[1], end), HOUR):
                part = asset if last - first == HOUR else scaled(asset, (last - first) / HOUR)
                hours.setdefault(first - first % HOUR, []).append(part)
                told.setdefault(first - first % HOUR, set()).add((first, last))
    return {hour: parts for hour, parts in hours.items() if sum(b - a for a, b in told[hour]) == HOUR}


def _kind(raw: Raw) -> str | None:
    try:
        return _KIND.decode(raw).type
    except MALFORMED:
        return None


def _decoded(raw: Raw) -> _Asset | None:
    try:
        return _ROW.decode(raw)
    except MALFORMED:
        return None


def _negative_without_credit(row: _Asset) -> bool:
    """Whether an asset costs less than nothing and no credit says why; a node may, by a late bill of earlier days."""
    if row.totalCost >= -ROUNDING_USD or row.type == "Node":
        return False
    credit = min(0.0, row.adjustment or 0.0) + min(0.0, row.credit or 0.0)
    return row.totalCost - credit < -ROUNDING_USD


def _asset(key: str, raw: _Asset) -> Asset:
    labels = raw.labels or {}
    byte_hours = raw.byteHours or 0.0
    zone = next((v for k, v in labels.items() if k.endswith(("topology_kubernetes_io_zone", "zone"))), "")
    return Asset(
        type=UPSTREAM_TYPES[raw.type],
        name=raw.properties.name or key.rsplit("/", 1)[-1],
        cluster=raw.properties.cluster or "",
        provider=raw.properties.provider or "",
        provider_id=raw.properties.providerID or "",
        instance_type=raw.nodeType or "",
        zone=zone,
        spot=bool(raw.preemptible),
        cpu_cores=raw.cpuCores,
        ram_bytes=raw.ramBytes,
        gpu_count=raw.gpuCount,
        hours=(raw.minutes or 0.0) / 60,
        last_seen=parse_rfc3339(raw.end) if raw.end else None,
        cpu_cost=raw.cpuCost or 0.0,
        ram_cost=raw.ramCost or 0.0,
        gpu_cost=raw.gpuCost or 0.0,
        adjustment=raw.adjustment or 0.0,
        total_cost=raw.totalCost,
        cpu_utilization=_busy(raw.cpuBreakdown),
        ram_utilization=_busy(raw.ramBreakdown) if raw.type == "Node" else _used(raw, byte_hours),
        storage_bytes=raw.bytes,
        storage_class=raw.storageClass or "",
        volume_name=raw.volumeName or "",
        claim_name=raw.claimName or "",
        claim_namespace=raw.claimNamespace or "",
        ip=raw.ip or "",
    )


def _busy(breakdown: _Breakdown | None) -> float | None:
    return None if breakdown is None or breakdown.idle is None else 1.0 - breakdown.idle


def _used(raw: _Asset, byte_hours: float) -> float | None:
    return raw.byteHoursUsed / byte_hours if raw.byteHoursUsed is not None and byte_hours else None
