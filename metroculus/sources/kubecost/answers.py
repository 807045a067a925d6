"""What Kubecost and OpenCost answer, decoded into typed values; only the fields that are used.

The body is hostile: numbers must be finite, costs not negative (but for idle, adjustments and credits), keys may be
missing, null or twice. A row that cannot be read is counted and left out, never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from metroculus.cost_model.allocation import IDLE, Allocation, AllocationSet, Amounts, Costs, Egress, Usage
from metroculus.cost_model.assets import UPSTREAM_TYPES, Asset
from metroculus.cost_model.hours import ROUNDING_USD
from metroculus.sources.errors import BadAnswer
from metroculus.sources.numbers import Quantity, Usd
from tools.window import parse_rfc3339_utc

Number = Quantity | None | UnsetType
Cost = Usd | None | UnsetType
T = TypeVar("T")

GIB = 2**30
MAX_NAME_LENGTH = 1024
MAX_NAMESPACE_LENGTH = 253

_MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Window(Struct):
    start: str
    end: str


class _Properties(Struct, rename="camel"):
    cluster: str | None = None
    node: str | None = None
    container: str | None = None
    controller: str | None = None
    controller_kind: str | None = None
    namespace: str | None = None
    pod: str | None = None
    services: list[str] | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Row(Struct, rename="camel"):
    window: _Window
    name: str | None = None
    properties: _Properties | None = None
    start: str | None = None
    end: str | None = None
    minutes: Number = UNSET
    cpu_core_request_average: Number = UNSET
    cpu_core_usage_average: Number = UNSET
    ram_byte_request_average: Number = UNSET
    ram_byte_usage_average: Number = UNSET
    cpu_core_hours: Number = UNSET
    ram_byte_hours: Number = UNSET
    gpu_hours: Number = UNSET
    pv_byte_hours: Number = UNSET
    cpu_cost: Cost = UNSET
    cpu_cost_adjustment: Cost = UNSET
    ram_cost: Cost = UNSET
    ram_cost_adjustment: Cost = UNSET
    gpu_cost: Cost = UNSET
    gpu_cost_adjustment: Cost = UNSET
    pv_cost: Cost = UNSET
    pv_cost_adjustment: Cost = UNSET
    network_cost: Cost = UNSET
    network_cost_adjustment: Cost = UNSET
    network_internet_cost: Cost = UNSET
    network_cross_region_cost: Cost = UNSET
    network_cross_zone_cost: Cost = UNSET
    load_balancer_cost: Cost = UNSET
    load_balancer_cost_adjustment: Cost = UNSET
    shared_cost: Cost = UNSET
    external_cost: Cost = UNSET
    total_cost: Cost = UNSET


class _Envelope(Struct):
    code: int = 200
    data: Raw = Raw(b"null")
    warning: str | None = None
    message: str | None = None


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
    window: _Window | None = None
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


class Decoded(Struct, frozen=True):
    """Sets as they came, with what the upstream warned of."""

    sets: tuple[AllocationSet, ...]
    warnings: tuple[str, ...]


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_SETS = msgspec.json.Decoder(list[dict[str, _Row] | None] | None)
_RAW_SETS = msgspec.json.Decoder(list[dict[str, Raw] | None] | None)
_ROW = msgspec.json.Decoder(_Row)


def _malformed(source: str) -> BadAnswer:
    return BadAnswer(f"{source} answered with something that is not its JSON")


def open_envelope(source: str, body: bytes) -> tuple[Raw, tuple[str, ...]]:
    """``data`` and warnings of an answer whose ``code`` says success.

    Raises:
        BadAnswer: not JSON, or a ``code`` of failure inside an HTTP 200.
    """
    try:
        envelope = _ENVELOPE.decode(body)
    except _MALFORMED:
        raise _malformed(source) from None
    if envelope.code != 200:
        raise BadAnswer(f"{source} answered with code {envelope.code} inside a 200")
    return envelope.data, tuple(text[:500] for text in (envelope.warning, envelope.message) if text)


def decode_allocation(source: str, body: bytes, aggregate: Sequence[str]) -> Decoded:
    """The sets of an allocation answer, those without allocations left out.

    Args:
        aggregate: what was asked for; names are read by it where properties are missing.

    Raises:
        BadAnswer: not an allocation answer at all, no row of it that can be read, or sets that overlap.
    """
    data, warnings = open_envelope(source, body)
    try:
        sets = _SETS.decode(data)
        rows: list[list[tuple[str, _Row | None]]] = [list((one or {}).items()) for one in sets or ()]
    except _MALFORMED:
        rows = _rows_one_by_one(source, data)
    _refuse_repeated_keys(source, bytes(data), sum(map(len, rows)))
    read = (_allocation_set(one, aggregate) for one in rows if one)
    found = sorted((one for one in read if one is not None), key=lambda one: one.start)
    if all(a.special == IDLE for one in found for a in one.allocations) and any(map(_unreadable, chain(*rows))):
        raise BadAnswer(f"{source} answered with rows of which none can be read")
    for before, after in pairwise(found):
        if after.start < before.end:
            raise BadAnswer(f"{source} answered with sets that overlap")
    return Decoded(tuple(found), warnings)


def _rows_one_by_one(source: str, data: Raw) -> list[list[tuple[str, _Row | None]]]:
    """Rows, with None for each that cannot be read."""

    def read(raw: Raw) -> _Row | None:
        try:
            return _ROW.decode(raw)
        except _MALFORMED:
            return None

    try:
        sets = _RAW_SETS.decode(data)
        return [[(name, read(raw)) for name, raw in (one or {}).items()] for one in sets or ()]
    except _MALFORMED:
        raise _malformed(source) from None


def _refuse_repeated_keys(source: str, data: bytes, rows: int) -> None:
    """A key that stands twice in one object would lose a cost unseen.

    Args:
        rows: how many were decoded; as many windows as that, and there is nothing to look for.

    Raises:
        BadAnswer
    """
    if data.count(b'"window"') == rows:
        return

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            raise BadAnswer(f"{source} answered with the same key twice")

    try:
        json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return


def _allocation_set(rows: Iterable[tuple[str, _Row | None]], aggregate: Sequence[str]) -> AllocationSet | None:
    """One set out of its rows; None where no row has a window to place it by."""
    allocations: list[Allocation] = []
    quarantined, disagreements = 0, []
    spans = []
    for key, row in rows:
        window = _span(row)
        allocation = _allocation(key, row, window, aggregate) if row is not None and window is not None else None
        if window is not None:
            spans.append(window)
        if row is None or allocation is None:
            quarantined += 1
            continue
        allocations.append(allocation)
        if isinstance(row.total_cost, float) and not allocation.unknown:
            difference = row.total_cost - allocation.costs.total
            disagreements.append(difference if abs(difference) > 8 * ROUNDING_USD else 0.0)
    if not spans:
        return AllocationSet(0, 0, (), quarantined) if quarantined else None
    start, end = min(s for s, _ in spans), max(e for _, e in spans)
    return AllocationSet(start, end, tuple(allocations), quarantined, sum(map(abs, disagreements)))


def _unreadable(named: tuple[str, _Row | None]) -> bool:
    """Of rows that were left out: one that could not be read, and not one that only has nothing to say."""
    name, row = named
    if row is None:
        return True
    says = any(isinstance(getattr(row, field), float) for _, field, _ in _COST_FIELDS)
    return says and name.rsplit("/", 1)[-1] != IDLE


@lru_cache(maxsize=4096)
def _stamp(text: str) -> int | None:
    return parse_rfc3339_utc(text)


def _span(row: _Row | None) -> tuple[int, int] | None:
    return _window_of(row.window) if row is not None else None


def _window_of(window: _Window | None) -> tuple[int, int] | None:
    if window is None:
        return None
    start, end = _stamp(window.start), _stamp(window.end)
    return (start, end) if start is not None and end is not None and start < end else None


_COMPONENTS = ("cpu", "ram", "gpu", "pv", "network", "load_balancer", "shared", "external")
_COST_FIELDS = tuple((name, f"{name}_cost", f"{name}_cost_adjustment") for name in _COMPONENTS)
_CREDITS = ("shared", "external")
"""What may be below zero without being idle."""
_TOLD_BY_PROPERTIES = frozenset({"namespace", "pod", "cluster", "node", "controller", "controllerKind"})
_REQUIRED = ("cpu", "ram")
"""Every version of either upstream has these: missing is unknown. Others are missing where the version has none."""


def _allocation(key: str, row: _Row, window: tuple[int, int], aggregate: Sequence[str]) -> Allocation | None:
    """An allocation, or None where the row says nothing, or what cannot be."""
    name = row.name if row.name is not None else key
    properties = row.properties or _Properties()
    told = properties.namespace is not None and (properties.pod is not None or "pod" not in aggregate)
    parts = {} if told and _TOLD_BY_PROPERTIES.issuperset(aggregate or ("container",)) else _parts(name, aggregate)
    namespace = properties.namespace if properties.namespace is not None else parts.get("namespace", "")
    if len(name) > MAX_NAME_LENGTH or len(namespace) > MAX_NAMESPACE_LENGTH or "/" in namespace:
        return None
    idle = name.rsplit("/", 1)[-1] == IDLE
    costs: dict[str, float] = {}
    unknown: list[str] = []
    for component, field, adjustment in _COST_FIELDS:
        cost: Cost = getattr(row, field)
        if cost is None or (cost is UNSET and component in _REQUIRED):
            unknown.append(component)
            continue
        value = cost if isinstance(cost, float) else 0.0
        if value < -ROUNDING_USD and not idle and component not in _CREDITS:
            return None
        costs[component] = value + _number(getattr(row, adjustment, None))
    if len(unknown) == len(_COMPONENTS) or (
        not costs.get("shared") and set(_REQUIRED) <= set(unknown) and not any(costs.values())
    ):
        return None
    ran_from, ran_until = _stamp(row.start or "") or window[0], _stamp(row.end or "") or window[1]
    minutes = row.minutes if isinstance(row.minutes, float) else (ran_until - ran_from) / 60
    minutes = min(max(minutes, 0.0), (window[1] - window[0]) / 60)
    return Allocation(
        name=name,
        namespace=namespace,
        controller=properties.controller or _without_kind(parts.get("controller", "")),
        controller_kind=properties.controller_kind or parts.get("controllerKind", ""),
        pod=properties.pod or parts.get("pod", ""),
        container=parts.get("container") or properties.container or "",
        node=properties.node or parts.get("node", ""),
        cluster=properties.cluster or parts.get("cluster", ""),
        services=tuple(properties.services or ()) or _single(parts.get("service")),
        labels=_named("label:", parts, properties.labels or {}),
        annotations=_named("annotation:", parts, properties.annotations or {}),
        start=ran_from,
        end=ran_until,
        costs=Costs(**costs),
        egress=Egress(
            _number(row.network_internet_cost),
            _number(row.network_cross_region_cost),
            _number(row.network_cross_zone_cost),
        ),
        usage=Usage(
            _number(row.cpu_core_request_average) * minutes,
            _number(row.cpu_core_usage_average) * minutes,
            _number(row.ram_byte_request_average) * minutes,
            _number(row.ram_byte_usage_average) * minutes,
        ),
        amounts=Amounts(
            _number(row.cpu_core_hours),
            _number(row.ram_byte_hours) / GIB,
            _number(row.gpu_hours),
            _number(row.pv_byte_hours) / GIB,
        ),
        unknown=tuple(unknown),
    )


def _number(value: object) -> float:
    return value if isinstance(value, float) else 0.0


def _parts(name: str, aggregate: Sequence[str]) -> dict[str, str]:
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


def _without_kind(controller: str) -> str:
    """``deployment:web`` is how the upstream names a controller beside other properties."""
    return controller.partition(":")[2] or controller


def _single(text: str | None) -> tuple[str, ...]:
    return (text,) if text else ()


def _named(prefix: str, parts: dict[str, str], properties: dict[str, str]) -> dict[str, str]:
    """Labels or annotations, those that the name tells among them."""
    if not parts:
        return properties
    return {key[len(prefix) :]: part for key, part in parts.items() if key.startswith(prefix) and part} | properties


_ASSETS_LIST = msgspec.json.Decoder(list[dict[str, _Asset] | None] | None)
_ASSETS_OBJECT = msgspec.json.Decoder(dict[str, _Asset] | None)


class DecodedAssets(Struct, frozen=True):
    """Assets as they came, each with the window that it is of; None where it did not say."""

    found: tuple[tuple[tuple[int, int] | None, Asset], ...]

    @property
    def assets(self) -> tuple[Asset, ...]:
        return tuple(asset for _, asset in self.found)

    @property
    def spans(self) -> set[tuple[int, int]]:
        return {span for span, _ in self.found if span is not None}


def decode_assets(source: str, body: bytes) -> DecodedAssets:
    """Assets out of either form: Kubecost's list of objects, OpenCost's object.

    A node may cost less than nothing for a while (a late adjustment of earlier days); nothing else may.

    Raises:
        BadAnswer
    """
    data, _ = open_envelope(source, body)
    decoder: Callable[[Raw], Any] = _ASSETS_LIST.decode if bytes(data).startswith(b"[") else _ASSETS_OBJECT.decode
    try:
        decoded = decoder(data)
    except _MALFORMED:
        raise _malformed(source) from None
    groups: list[dict[str, _Asset]] = (
        [one for one in decoded or () if one] if isinstance(decoded, list) else [decoded or {}]
    )
    found = [(name, raw) for one in groups for name, raw in one.items() if raw.type in UPSTREAM_TYPES]
    if any(raw.totalCost < -ROUNDING_USD and raw.type != "Node" for _, raw in found):
        raise BadAnswer(f"{source} answered with an asset that costs less than nothing")
    return DecodedAssets(tuple((_window_of(raw.window), _asset(key, raw)) for key, raw in found))


def _asset(key: str, raw: _Asset) -> Asset:
    labels = raw.labels or {}
    byte_hours = raw.byteHours or 0.0
    zone = next((v for k, v in labels.items() if k.endswith(("topology_kubernetes_io_zone", "zone"))), "")
    return Asset(
        type=UPSTREAM_TYPES[raw.type],
        name=raw.properties.name or key.rsplit("/", 1)[-1],
        provider=raw.properties.provider or "",
        provider_id=raw.properties.providerID or "",
        instance_type=raw.nodeType or "",
        zone=zone,
        spot=bool(raw.preemptible),
        cpu_cores=raw.cpuCores,
        ram_bytes=raw.ramBytes,
        gpu_count=raw.gpuCount,
        hours=(raw.minutes or 0.0) / 60,
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
