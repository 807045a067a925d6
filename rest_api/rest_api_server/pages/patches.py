"""What to type for a recommendation: commands for ``kubectl``, of names that are quoted for a shell."""

from __future__ import annotations

import math
from shlex import quote

from optscale_client.metroculus_client.structs import Recommendation

MIB = 2**20
SIZED = {"deployment", "statefulset", "daemonset", "replicaset"}
SCALED = {"deployment", "statefulset", "replicaset"}


def patch_of(one: Recommendation) -> str:
    """The command, or nothing where there is none that is right for every cluster."""
    kind = one.controller_kind.lower()
    target = quote(f"{kind}/{one.controller}")
    namespace = f"kubectl --namespace {quote(one.namespace)}"
    if one.kind in ("right_sizing", "under_provisioned"):
        amount = _quantity(one.resource, one.recommended)
        if kind not in SIZED or not one.container or amount is None:
            return ""
        return f"{namespace} set resources {target} --containers {quote(one.container)} --requests {amount}"
    if one.kind == "abandoned_workload":
        return f"{namespace} scale {target} --replicas 0" if kind in SCALED else ""
    if one.kind == "idle_node" and one.name:
        return f"kubectl drain {quote(one.name)} --ignore-daemonsets"
    return ""


def _quantity(resource: str, wanted: float | None) -> str | None:
    """As Kubernetes writes it, rounded up."""
    if wanted is None or not math.isfinite(wanted) or wanted <= 0:
        return None
    if resource == "cpu":
        return f"cpu={math.ceil(wanted * 1000)}m"
    return f"memory={math.ceil(wanted / MIB)}Mi" if resource == "memory" else None


def amount(resource: str, value: float | None) -> str:
    """An amount of a resource for people: cores as they are, bytes in MiB or GiB."""
    if value is None:
        return ""
    if resource == "cpu":
        return f"{value:,.4g} cores"
    if resource == "memory":
        return bytes_text(value)
    return f"{value:,.2f} GiB" if resource == "storage" else f"{value:,.2f}"


def bytes_text(value: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:,.4g} {unit}"


def evidence_of(one: Recommendation) -> str:
    """Why, in words."""
    told = one.evidence
    said = []
    usage = told.get("usage")
    if isinstance(usage, int | float):
        statistic = "95th percentile of usage" if told.get("statistic") == "p95" else "highest usage"
        said.append(f"{statistic}: {amount(one.resource, float(usage))}")
    if isinstance(told.get("cpu_p95"), int | float):
        said.append(f"95th percentile of CPU: {told['cpu_p95']:,.4f} cores")
    for name, text in (("egress_bytes", "sent in the window"), ("egress_bytes_per_second", "sent a second")):
        if isinstance(told.get(name), int | float):
            said.append(f"{text}: {bytes_text(float(told[name]))}")
    if "egress_bytes" in told and told["egress_bytes"] is None:
        said.append("nobody counts what it sends")
    if isinstance(told.get("requested_cores"), int | float):
        said.append(f"requested on it: {told['requested_cores']:,.2f} cores")
    if isinstance(told.get("requested_bytes"), int | float):
        said.append(f"{bytes_text(float(told['requested_bytes']))} of memory")
    if isinstance(told.get("hours"), int | float):
        said.append(f"there for {told['hours']:,.0f} hours of the window")
    if isinstance(told.get("window_seconds"), int | float):
        said.append(f"over {told['window_seconds'] / 86400:,.1f} days")
    return "; ".join(said)
