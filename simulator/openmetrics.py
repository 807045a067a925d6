"""The world's metrics, as its exporters would have written them: every series that a real OpenCost reads.

Names and labels are those of OpenCost's own queries (``pkg/costmodel/promparsers.go`` and the like). A sample at ``t``
holds what was so over ``[t, t + interval)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

from simulator.world import GIB, HOUR, Container, Egress, Node, World, sanitized

EXPORTER = "opencost"
FLAGS = {
    "internet": {"internet": "true", "same_zone": "false", "same_region": "false"},
    "region": {"internet": "false", "same_zone": "false", "same_region": "false"},
    "zone": {"internet": "false", "same_zone": "false", "same_region": "true"},
}


@dataclass(frozen=True)
class Series:
    name: str
    labels: dict[str, str]
    value_at: Callable[[int], float]
    start: int
    end: int


def constant(value: float) -> Callable[[int], float]:
    return lambda stamp: value


def series(world: World, extra: dict[str, str] | None = None) -> list[Series]:
    """Every series of the world, each labelled with its cluster and with ``extra`` (a tenant)."""
    found: list[Series] = []
    common = {"cluster_id": world.cluster_id} | (extra or {})

    def add(name: str, value: float | Callable[[int], float], start: int, end: int, **labels: str) -> None:
        found.append(Series(name, common | labels, value if callable(value) else constant(value), start, end))

    def exported(name: str, value: float, start: int, end: int, **labels: str) -> None:
        """A gauge of the cost exporter, which was restarted once: two instances, five minutes of them together."""
        restart = world.exporter_restart
        for instance, since, until in (("exporter-0", start, restart + 300), ("exporter-1", restart, end)):
            if max(since, start) < min(until, end):
                add(name, value, max(since, start), min(until, end), instance=instance, job=EXPORTER, **labels)

    for node in world.nodes:
        _node_series(add, exported, node)
    for container in world.containers:
        _container_series(add, exported, container)
    _owner_series(add, world)
    _storage_series(add, exported, world)
    for reach in ("internet", "region", "zone"):
        exported(f"kubecost_network_{reach}_egress_cost", world.usd_per_gib[reach], world.start, world.end)
    for flow in world.egress:
        add(
            "kubecost_pod_network_egress_bytes_total",
            _counter(flow),
            flow.start,
            flow.end,
            namespace=flow.namespace,
            pod_name=flow.pod,
            **FLAGS[flow.reach],
        )
    for balancer in world.balancers:
        exported(
            "kubecost_load_balancer_cost",
            balancer.usd_per_hour,
            balancer.start,
            balancer.end,
            namespace=balancer.namespace,
            service_name=balancer.service,
            ingress_ip=balancer.ip,
        )
    exported("kubecost_cluster_management_cost", world.management_usd_per_hour, world.start, world.end)
    return found


def _node_series(add: Callable[..., None], exported: Callable[..., None], node: Node) -> None:
    labels = {"node": node.name, "instance_type": node.instance_type, "provider_id": node.provider_id}
    span = (node.start, node.end)
    exported("node_cpu_hourly_cost", node.usd_per_core_hour, *span, **labels)
    exported("node_ram_hourly_cost", node.usd_per_gib_hour, *span, **labels)
    exported("node_gpu_hourly_cost", node.usd_per_gpu_hour, *span, **labels)
    exported("node_total_hourly_cost", node.usd_per_hour, *span, **labels)
    exported("node_gpu_count", node.gpus, *span, **labels)
    exported("kubecost_node_is_spot", float(node.spot), *span, **labels)
    for what in ("capacity", "allocatable"):
        add(f"kube_node_status_{what}_cpu_cores", node.cores, *span, node=node.name)
        add(f"kube_node_status_{what}_memory_bytes", node.ram_gib * GIB, *span, node=node.name)
    add(
        "kube_node_labels",
        1.0,
        *span,
        node=node.name,
        label_node_kubernetes_io_instance_type=node.instance_type,
        label_topology_kubernetes_io_zone=node.zone,
        label_kubernetes_io_arch="amd64",
    )


def _container_series(add: Callable[..., None], exported: Callable[..., None], container: Container) -> None:
    who = {"namespace": container.namespace, "pod": container.pod, "container": container.name}
    placed = who | {"node": container.node.name}
    span = (container.start, container.end)
    add("kube_pod_container_status_running", 1.0, *span, **who, uid=f"uid-{container.pod}")
    add("container_cpu_allocation", container.cpu_allocation_at, *span, **placed)
    add("container_memory_allocation_bytes", lambda t: container.ram_allocation_gib_at(t) * GIB, *span, **placed)
    if container.gpus:
        add("container_gpu_allocation", container.gpus, *span, **placed)
    for resource, unit, request in (
        ("cpu", "core", container.cpu_request),
        ("memory", "byte", container.ram_request_gib * GIB),
    ):
        if request:
            kind = {"resource": resource, "unit": unit}
            add("kube_pod_container_resource_requests", request, *span, **placed, **kind)
            add("kube_pod_container_resource_limits", request * 2, *span, **placed, **kind)
    if container.gpus:
        add(
            "kube_pod_container_resource_requests", container.gpus, *span, **placed,
            resource="nvidia_com_gpu", unit="integer",
        )  # fmt: skip
    instance = {"instance": container.node.name}
    add(
        "container_memory_working_set_bytes", lambda t: container.ram_usage_gib_at(t) * GIB, *span, **placed, **instance
    )
    add("container_cpu_usage_seconds_total", _cpu_seconds(container), *span, **placed, **instance)


def _cpu_seconds(container: Container) -> Callable[[int], float]:
    """Core-seconds used since the container started; usage is constant within each hour."""
    by_hour: dict[int, float] = {}

    def value_at(stamp: int) -> float:
        hour = stamp - stamp % HOUR
        if hour not in by_hour:
            since = max(container.start, hour - HOUR)
            before = value_at(hour - 1) + container.cpu_usage_at(hour - 1) if hour > container.start else 0.0
            by_hour[hour] = before if since < hour else 0.0
        since = max(hour, container.start)
        return by_hour[hour] + container.cpu_usage_at(stamp) * (stamp - since)

    return value_at


def _counter(flow: Egress) -> Callable[[int], float]:
    """Bytes sent since the start, or since the reset."""

    def value_at(stamp: int) -> float:
        since = flow.reset_at if flow.reset_at and stamp >= flow.reset_at else flow.start
        return flow.gib_per_hour * GIB * (stamp - since) / HOUR

    return value_at


def _owner_series(add: Callable[..., None], world: World) -> None:
    pods: dict[tuple[str, str], tuple[Container, int, int]] = {}
    for c in world.containers:
        key = (c.namespace, c.pod)
        first = pods.get(key)
        pods[key] = (c, min(c.start, first[1]) if first else c.start, max(c.end, first[2]) if first else c.end)
    controllers: dict[tuple[str, str, str], tuple[dict[str, str], int, int]] = {}
    replicasets: dict[tuple[str, str], tuple[str, int, int]] = {}
    for (namespace, pod), (container, start, end) in pods.items():
        labels = {f"label_{sanitized(name)}": value for name, value in container.labels.items()}
        add("kube_pod_labels", 1.0, start, end, namespace=namespace, pod=pod, uid=f"uid-{pod}", **labels)
        owner, kind = container.controller, container.kind
        if kind == "deployment":
            replicaset = pod.rsplit("-", 1)[0]
            since, until = replicasets.get((namespace, replicaset), (owner, start, end))[1:]
            replicasets[(namespace, replicaset)] = (owner, min(since, start), max(until, end))
        name = pod.rsplit("-", 1)[0] if kind == "deployment" else owner
        owner_kind = {"deployment": "ReplicaSet", "statefulset": "StatefulSet", "daemonset": "DaemonSet"}.get(
            kind, "Job"
        )
        add("kube_pod_owner", 1.0, start, end, namespace=namespace, pod=pod, owner_kind=owner_kind, owner_name=name)
        seen = controllers.get((kind, namespace, owner))
        controllers[(kind, namespace, owner)] = (
            container.labels,
            min(start, seen[1]) if seen else start,
            max(end, seen[2]) if seen else end,
        )
    for (namespace, replicaset), (owner, start, end) in replicasets.items():
        add(
            "kube_replicaset_owner", 1.0, start, end, namespace=namespace, replicaset=replicaset,
            owner_kind="Deployment", owner_name=owner,
        )  # fmt: skip
    for (kind, namespace, owner), (labels, start, end) in controllers.items():
        matched = {f"label_{sanitized(name)}": value for name, value in labels.items()}
        if kind == "deployment":
            add("deployment_match_labels", 1.0, start, end, namespace=namespace, deployment=owner, **matched)
        if kind == "statefulset":
            add("statefulSet_match_labels", 1.0, start, end, namespace=namespace, statefulSet=owner, **matched)
    for balancer in world.balancers:
        add(
            "service_selector_labels", 1.0, balancer.start, balancer.end,
            namespace=balancer.namespace, service=balancer.service, label_app=balancer.service,
        )  # fmt: skip
    for namespace, labels in world.namespace_labels.items():
        add(
            "kube_namespace_labels", 1.0, world.start, world.end, namespace=namespace,
            **{f"label_{name}": value for name, value in labels.items()},
        )  # fmt: skip
    for namespace, hard in world.quotas.items():
        for resource, value in hard.items():
            for kind, share in (("hard", 1.0), ("used", 0.5)):
                add(
                    "kube_resourcequota", value * share, world.start, world.end, namespace=namespace,
                    resourcequota="compute", resource=resource, type=kind,
                )  # fmt: skip


def _storage_series(add: Callable[..., None], exported: Callable[..., None], world: World) -> None:
    for volume in world.volumes:
        span = (volume.start, volume.end)
        add("kube_persistentvolume_capacity_bytes", volume.gib * GIB, *span, persistentvolume=volume.name)
        exported(
            "pv_hourly_cost",
            volume.usd_per_gib_hour,
            *span,
            volumename=volume.name,
            persistentvolume=volume.name,
            provider_id=f"vol-{volume.name}",
        )
        add(
            "kubecost_pv_info", 1.0, *span, persistentvolume=volume.name, storageclass=volume.storage_class,
            provider_id=f"vol-{volume.name}",
        )  # fmt: skip
        if not volume.claim:
            continue
        claim = {"persistentvolumeclaim": volume.claim, "namespace": volume.namespace}
        add(
            "kube_persistentvolumeclaim_info", 1.0, *span, **claim,
            storageclass=volume.storage_class, volumename=volume.name,
        )  # fmt: skip
        add("kube_persistentvolumeclaim_resource_requests_storage_bytes", volume.gib * GIB, *span, **claim)
        add("pod_pvc_allocation", volume.gib * GIB, *span, **claim, persistentvolume=volume.name, pod=volume.pod)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _identity(one: Series) -> str:
    labels = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(one.labels.items()))
    return f"{one.name}{{{labels}}}"


def _stamps(world: World, one: Series, interval: int, now: int | None) -> Iterable[int]:
    first = max(one.start, world.start)
    first += -first % interval
    last = min(one.end, world.end) if now is None else min(one.end, world.end, now)
    for stamp in range(first, last, interval):
        if not any(a <= stamp < b for a, b in world.holes):
            yield stamp


def lines(
    world: World, extra: dict[str, str] | None = None, interval: int = 60, now: int | None = None
) -> Iterator[str]:
    """OpenMetrics lines of the world's whole history, series sorted, ``# EOF`` last.

    Args:
        interval: seconds between samples.
        now: nothing is written from here on.
    """
    for one in sorted(series(world, extra), key=_identity):
        identity, value_at = _identity(one), one.value_at
        for stamp in _stamps(world, one, interval, now):
            yield f"{identity} {value_at(stamp)!r} {stamp}\n"
    yield "# EOF\n"


def write(file: TextIO, world: World, extra: dict[str, str] | None = None, interval: int = 60) -> int:
    """Write the world's history; returns the number of samples."""
    count = -1
    for line in lines(world, extra, interval):
        file.write(line)
        count += 1
    return count


def exposition(world: World, now: int) -> Iterator[str]:
    """What the exporters say at ``now``, for Prometheus to scrape."""
    for one in sorted(series(world), key=_identity):
        if one.start <= now < one.end:
            yield f"{_identity(one)} {one.value_at(now)!r}\n"
