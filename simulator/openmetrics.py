"""The world's metrics, as its exporters would have written them: every series that a real OpenCost reads.

Names and labels are those of OpenCost's own queries (``pkg/costmodel/promparsers.go`` and the like). A sample at ``t``
holds what was so over ``[t, t + interval)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TextIO

from simulator.world import GIB, HOUR, Container, Egress, Node, World, sanitized

EXPORTER = "opencost"
"""The cost exporter's job; series without one are of kube-state-metrics, cAdvisor or the network daemon."""
FROM_THE_COST_EXPORTER = ("container_cpu_allocation", "container_memory_allocation_bytes", "container_gpu_allocation")
"""Its series that come and go with what it knows of containers: in a blind stretch it writes none."""
OVERWRITTEN = ("namespace", "pod", "container")
"""Labels that a scrape without ``honor_labels`` takes for the exporter's own pod."""
REPLICA_LABEL = "prometheus_replica"
REPLICA_OFFSET_SECONDS = 7
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

    @property
    def from_the_cost_exporter(self) -> bool:
        return self.labels.get("job") == EXPORTER or self.name in FROM_THE_COST_EXPORTER


@dataclass(frozen=True)
class Recording:
    """How a Prometheus of the field came to have a world's series."""

    interval: int = 60
    """Seconds between samples."""
    cost_interval: int = 0
    """Of the cost exporter, where that is scraped at another pace; 0 is the same."""
    interval_changes: tuple[int, int] | None = None
    """``(stamp, seconds)``: every interval is this long from then on."""
    replicas: int = 1
    """Of a Prometheus that nobody deduplicates; each writes all series under its own replica label."""
    kube_state_metrics: int = 0
    """1 or 2: names as that version writes them; 0 writes what OpenCost's own exporter does."""
    honor_labels: bool = True
    """Without it a scrape renames the labels that it overwrites to ``exported_…``."""
    drops: tuple[str, ...] = ()
    """Beginnings of the names of series that were not kept."""

    def pace(self, one: Series) -> int:
        return self.cost_interval if self.cost_interval and one.from_the_cost_exporter else self.interval


PLAIN = Recording()


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
        if node.gpus:
            kind = {"resource": "nvidia_com_gpu", "unit": "integer"}
            add(f"kube_node_status_{what}", node.gpus, *span, node=node.name, **kind)
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
    for service in world.services:
        add(
            "service_selector_labels", 1.0, world.start, world.end, namespace=service.namespace, service=service.name,
            **{f"label_{sanitized(name)}": value for name, value in service.selector.items()},
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
        for pod in volume.pods:
            size = volume.gib * GIB / len(volume.pods)
            add("pod_pvc_allocation", size, *span, **claim, persistentvolume=volume.name, pod=pod)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _identity(one: Series) -> str:
    labels = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(one.labels.items()))
    return f"{one.name}{{{labels}}}"


def _stamps(world: World, one: Series, recording: Recording, now: int | None) -> Iterator[int]:
    last = min(one.end, world.end) if now is None else min(one.end, world.end, now)
    first = max(one.start, world.start)
    changes, later = recording.interval_changes or (last, 0)
    gaps = (*world.holes, *(world.blind if one.name in FROM_THE_COST_EXPORTER else ()))
    for since, until, pace in ((first, min(last, changes), recording.pace(one)), (max(first, changes), last, later)):
        if since >= until:
            continue
        for stamp in range(since + -since % pace, until, pace):
            if not any(a <= stamp < b for a, b in gaps):
                yield stamp


def recorded_series(world: World, extra: dict[str, str] | None, recording: Recording) -> list[Series]:
    """Every series as it is stored, sorted by its identity; two of one identity are one after the other in time."""
    found = [one for one in series(world, extra) if not one.name.startswith(recording.drops or ("-",))]
    found = [renamed for one in found for renamed in _of_version(one, recording.kube_state_metrics)]
    if not recording.honor_labels:
        found = [_overwritten(one) for one in found]
    if recording.replicas > 1:
        found = [
            replace(one, labels=one.labels | {REPLICA_LABEL: f"replica-{number}"})
            for number in range(recording.replicas)
            for one in found
        ]
    return sorted(found, key=_identity)


def _of_version(one: Series, version: int) -> list[Series]:
    """A series as this version of kube-state-metrics names it; none where it does not write it."""
    resource, unit = one.labels.get("resource", ""), one.labels.get("unit", "")
    if version == 1 and one.name.startswith("kube_pod_container_resource_"):
        name = {"cpu": f"{one.name}_cpu_cores", "memory": f"{one.name}_memory_bytes"}.get(resource)
        labels = {key: value for key, value in one.labels.items() if key not in ("resource", "unit")}
        return [replace(one, name=name, labels=labels)] if name else []
    if version == 2 and one.name.startswith("kube_node_status_"):
        name, _, _ = one.name.replace("_cpu_cores", "|").replace("_memory_bytes", "|").partition("|")
        of = ("cpu", "core") if one.name.endswith("cpu_cores") else ("memory", "byte")
        if unit:
            return [one]
        return [replace(one, name=name, labels=one.labels | {"resource": of[0], "unit": of[1]})]
    if version != 2 and one.name == "kube_node_status_capacity":
        return []
    return [one]


def _overwritten(one: Series) -> Series:
    """Labels as a scrape without ``honor_labels`` leaves them."""
    if not one.from_the_cost_exporter and not one.name.startswith("kube_"):
        return one
    kept = {f"exported_{key}" if key in OVERWRITTEN else key: value for key, value in one.labels.items()}
    where = {"namespace": EXPORTER, "pod": f"{EXPORTER}-0", "container": EXPORTER}
    return replace(one, labels=kept | where)


def lines(
    world: World,
    extra: dict[str, str] | None = None,
    interval: int = 60,
    now: int | None = None,
    recording: Recording | None = None,
) -> Iterator[str]:
    """OpenMetrics lines of the world's whole history, series sorted, ``# EOF`` last.

    Args:
        interval: seconds between samples, where no ``recording`` says more.
        now: nothing is written from here on.
    """
    recording = recording or Recording(interval)
    for one in recorded_series(world, extra, recording):
        identity, value_at = _identity(one), one.value_at
        late = REPLICA_OFFSET_SECONDS if one.labels.get(REPLICA_LABEL, "replica-0") != "replica-0" else 0
        for stamp in _stamps(world, one, recording, now):
            yield f"{identity} {value_at(stamp)!r} {stamp + late}\n"
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
    for one in recorded_series(world, None, PLAIN):
        if one.start <= now < one.end:
            yield f"{_identity(one)} {one.value_at(now)!r}\n"
