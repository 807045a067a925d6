"""Kubecost's savings answers: both shapes of the overview, and the details that say which workload it is."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from metroculus.cost_model.savings import Recommendation
from metroculus.sources.errors import BadAnswer
from metroculus.sources.numbers import MAX_USD, Quantity, Usd

_MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def _json(body: bytes) -> Any:
    """The answer's value, out of its envelope where it has one.

    Raises:
        BadAnswer
    """
    try:
        value = msgspec.json.decode(body)
    except _MALFORMED:
        raise BadAnswer("the savings are not JSON") from None
    if isinstance(value, dict) and "data" in value:
        if value.get("code", 200) != 200:
            raise BadAnswer("the savings came with a code of failure inside a 200")
        return value["data"]
    return value


def decode_overview(body: bytes, cluster: str) -> dict[str, float] | None:
    """USD a month by category, of the account's own cluster; None where the answer does not have that cluster.

    Args:
        cluster: its name, as its allocations' properties say; other clusters' savings are never taken.

    Raises:
        BadAnswer
    """
    value = _json(body)
    if not isinstance(value, dict):
        raise BadAnswer("the savings are no object")
    version3 = {
        name: _usd(entry["savingsPerMonth"])
        for name, entry in value.items()
        if isinstance(entry, dict) and "savingsPerMonth" in entry
    }
    if version3:
        return version3
    mine = value.get(cluster)
    if mine is None:
        return None
    if not isinstance(mine, dict):
        raise BadAnswer("the savings of the cluster are no object")
    return {
        name: _usd(entry.get("value"))
        for name, entry in mine.items()
        if isinstance(entry, dict) and entry.get("state") == "ready"
    }


def _usd(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_USD:
        raise BadAnswer("a saving is no number")
    return float(value)


class _Monthly(Struct):
    cpu: Usd = 0.0
    memory: Usd = 0.0


class _Request(Struct):
    cpuInMilliCores: Quantity = 0.0
    memoryInMiB: Quantity = 0.0


class _Sizing(Struct):
    clusterID: str = ""
    namespace: str = ""
    controllerKind: str = ""
    controllerName: str = ""
    containerName: str = ""
    monthlySavings: _Monthly = msgspec.field(default_factory=_Monthly)
    normalizedRecommendedRequest: _Request = msgspec.field(default_factory=_Request)
    normalizedLatestKnownRequest: _Request = msgspec.field(default_factory=_Request)
    normalizedAverageUsage: _Request = msgspec.field(default_factory=_Request)
    normalizedMaxUsage: _Request = msgspec.field(default_factory=_Request)


class _Sizings(Struct):
    Recommendations: list[_Sizing] = []


MIB = 2**20


def decode_request_sizing(body: bytes, cluster: str) -> list[Recommendation]:
    """Right-sizing of the account's own cluster, cpu and memory apart.

    Raises:
        BadAnswer
    """
    try:
        sizings = msgspec.convert(_json(body), _Sizings).Recommendations
    except msgspec.ValidationError:
        raise BadAnswer("the request sizing is not what it should be") from None
    found = []
    for one in sizings:
        if one.clusterID and cluster and one.clusterID != cluster:
            continue
        latest, wanted, peak = (
            one.normalizedLatestKnownRequest,
            one.normalizedRecommendedRequest,
            one.normalizedMaxUsage,
        )
        for resource, saving, had, want, used, unit in (
            ("cpu", one.monthlySavings.cpu, latest.cpuInMilliCores, wanted.cpuInMilliCores, peak.cpuInMilliCores, 1e-3),
            ("memory", one.monthlySavings.memory, latest.memoryInMiB, wanted.memoryInMiB, peak.memoryInMiB, MIB),
        ):
            if not saving:
                continue
            found.append(
                Recommendation(
                    kind="right_sizing" if saving > 0 else "under_provisioned",
                    namespace=one.namespace,
                    controller=one.controllerName,
                    controller_kind=one.controllerKind,
                    container=one.containerName,
                    name=f"{one.namespace}/{one.controllerName}/{one.containerName}",
                    resource="cpu" if resource == "cpu" else "memory",
                    monthly_saving=saving,
                    requested=had * unit,
                    recommended=want * unit,
                    freed=(had - want) * unit,
                    evidence={"usage": used * unit, "statistic": "max", "source": "kubecost"},
                    risk="low" if resource == "cpu" else "medium",
                )
            )
    return sorted(found, key=lambda r: (-r.monthly_saving, r.name, r.resource))


class _Owner(Struct):
    name: str = ""
    kind: str = ""


class _Abandoned(Struct):
    pod: str = ""
    namespace: str = ""
    clusterId: str = ""
    owners: list[_Owner] = []
    ingressBytesPerSecond: Quantity = 0.0
    egressBytesPerSecond: Quantity = 0.0
    monthlySavings: Usd = 0.0


def decode_abandoned(body: bytes, cluster: str) -> list[Recommendation]:
    """Workloads that hardly talk to anyone.

    Raises:
        BadAnswer
    """
    try:
        pods = msgspec.convert(_json(body), list[_Abandoned])
    except msgspec.ValidationError:
        raise BadAnswer("the abandoned workloads are not what they should be") from None
    return [
        Recommendation(
            kind="abandoned_workload",
            namespace=pod.namespace,
            controller=pod.owners[0].name if pod.owners else "",
            controller_kind=pod.owners[0].kind if pod.owners else "",
            name=f"{pod.namespace}/{pod.pod}",
            resource="workload",
            monthly_saving=pod.monthlySavings,
            evidence={
                "ingress_bytes_per_second": pod.ingressBytesPerSecond,
                "egress_bytes_per_second": pod.egressBytesPerSecond,
                "source": "kubecost",
            },
            risk="medium",
        )
        for pod in pods
        if not cluster or pod.clusterId in ("", cluster)
    ]
