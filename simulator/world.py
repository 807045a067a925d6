"""The world: nodes, workloads, volumes, balancers and traffic of one cluster over ``[start, end)``.

Every cost is a rate held constant over whole minutes, so its integral is exact arithmetic. Two kinds of world:
the realistic one, and one of 32nds, in which every hour's cost of everything is ``N / 32`` USD with N a multiple of
the world's prime: five decimals keep such a figure whole, sums of them are exact, and a foreign cent shows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from math import fsum

HOUR = 3600
DAY = 86400
GIB = 2**30

RECONCILED_AFTER_SECONDS = 2 * DAY
"""Cloud bills reach Kubecost this late: younger hours still carry the list price."""

NAMESPACES = ("api", "batch", "kube-system", "ml", "shop")


@dataclass(frozen=True)
class Node:
    name: str
    provider_id: str
    instance_type: str
    zone: str
    cores: float
    ram_gib: float
    gpus: float
    usd_per_core_hour: float
    usd_per_gib_hour: float
    usd_per_gpu_hour: float
    spot: bool
    start: int
    end: int

    @property
    def usd_per_hour(self) -> float:
        return (
            self.cores * self.usd_per_core_hour
            + self.ram_gib * self.usd_per_gib_hour
            + self.gpus * self.usd_per_gpu_hour
        )


@dataclass(frozen=True)
class Container:
    """One container of one pod; usage follows a daily profile, allocation is the larger of request and usage."""

    namespace: str
    controller: str
    kind: str
    pod: str
    name: str
    node: Node
    cpu_request: float
    ram_request_gib: float
    cpu_usage: float
    ram_usage_gib: float
    start: int
    end: int
    gpus: float = 0.0
    daily: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = ()

    def cpu_usage_at(self, stamp: float) -> float:
        return self.cpu_usage * self._level(stamp)

    def ram_usage_gib_at(self, stamp: float) -> float:
        return self.ram_usage_gib * self._level(stamp)

    def cpu_allocation_at(self, stamp: float) -> float:
        return max(self.cpu_request, self.cpu_usage_at(stamp))

    def ram_allocation_gib_at(self, stamp: float) -> float:
        return max(self.ram_request_gib, self.ram_usage_gib_at(stamp))

    def _level(self, stamp: float) -> float:
        """Busy in the afternoon, quiet at night: a triangle over the hours of the UTC day, mean 1."""
        hour = int(stamp % DAY) // HOUR
        return 1.0 + self.daily * (6.0 - abs(hour - 14 if hour >= 2 else hour + 10)) / 6.0


@dataclass(frozen=True)
class Volume:
    name: str
    gib: float
    usd_per_gib_hour: float
    start: int
    end: int
    claim: str = ""
    namespace: str = ""
    pods: tuple[str, ...] = ()
    """Those that mount it, in equal shares; claimed and mounted by none it is its namespace's."""
    storage_class: str = "gp3"


@dataclass(frozen=True)
class Balancer:
    namespace: str
    service: str
    ip: str
    usd_per_hour: float
    pods: tuple[str, ...]
    start: int
    end: int
    credit_usd_per_hour: float = 0.0
    """What the bill takes off it; more than it costs makes it money back."""


@dataclass(frozen=True)
class Service:
    """Which pods of a namespace a service selects, by their labels."""

    namespace: str
    name: str
    selector: dict[str, str]


@dataclass(frozen=True)
class Egress:
    """Traffic that leaves one pod; ``reach`` is ``internet``, ``region`` or ``zone``."""

    namespace: str
    pod: str
    reach: str
    gib_per_hour: float
    start: int
    end: int
    reset_at: int = 0


@dataclass(frozen=True)
class World:
    cluster_id: str
    start: int
    end: int
    nodes: tuple[Node, ...]
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...]
    balancers: tuple[Balancer, ...]
    egress: tuple[Egress, ...]
    usd_per_gib: dict[str, float]
    management_usd_per_hour: float
    discount: float
    """Share of cpu and ram cost that reconciliation takes off, once the bill is there."""
    namespace_labels: dict[str, dict[str, str]]
    quotas: dict[str, dict[str, float]]
    exporter_restart: int
    holes: tuple[tuple[int, int], ...] = ()
    """Stretches in which nothing was recorded."""
    blind: tuple[tuple[int, int], ...] = ()
    """Stretches in which the exporter wrote nodes and no containers."""
    boot_disks: tuple[Volume, ...] = ()
    """Disks of the nodes themselves: assets, and nobody's claim; their names are those of the nodes."""
    services: tuple[Service, ...] = ()


def sanitized(label: str) -> str:
    """A Kubernetes label as Prometheus spells it."""
    return label.translate(str.maketrans("-./", "___"))


def overlap(start: int, end: int, since: int, until: int) -> int:
    """Seconds that two half-open stretches share."""
    return max(0, min(end, until) - max(start, since))


def seconds_by_hour(start: int, end: int) -> list[tuple[int, int]]:
    """``(first second, seconds)`` of each hour that ``[start, end)`` touches."""
    parts = []
    while start < end:
        edge = min(end, start - start % HOUR + HOUR)
        parts.append((start, edge - start))
        start = edge
    return parts


def integral(rate_at: object, start: int, end: int) -> float:
    """``rate_at(stamp)`` per hour, constant within each hour, over ``[start, end)``."""
    assert callable(rate_at)
    return fsum(rate_at(stamp) * seconds / HOUR for stamp, seconds in seconds_by_hour(start, end))


@dataclass(frozen=True)
class _Scale:
    """What makes a world realistic or a world of 32nds."""

    cpu_price: float
    ram_price: float
    gpu_price: float
    spot_share: float
    volume_price: float
    volume_gib: tuple[float, float, float]
    balancer: float
    egress_price: dict[str, float]
    egress_gib: float
    management: float
    discount: float
    cpu: float
    """Cores per unit of request."""
    exact: bool


def _realistic(rng: random.Random) -> _Scale:
    level = rng.uniform(0.8, 1.25)
    return _Scale(
        cpu_price=0.031611 * level,
        ram_price=0.004237 * level,
        gpu_price=0.526 * level,
        spot_share=0.35,
        volume_price=0.08 / 730,
        volume_gib=(100.0, 50.0, 200.0),
        balancer=0.025,
        egress_price={"internet": 0.12, "region": 0.02, "zone": 0.01},
        egress_gib=rng.uniform(0.2, 0.6),
        management=0.1,
        discount=0.18,
        cpu=rng.uniform(0.9, 1.1),
        exact=False,
    )


def _of_32nds(prime: int) -> _Scale:
    unit = prime / 32
    return _Scale(
        cpu_price=unit,
        ram_price=unit,
        gpu_price=4 * unit,
        spot_share=1.0,
        volume_price=unit,
        volume_gib=(3.0, 2.0, 1.0),
        balancer=2 * unit,
        egress_price={"internet": unit, "region": unit, "zone": unit},
        egress_gib=1.0,
        management=unit,
        discount=0.5,
        cpu=2.0,
        exact=True,
    )


def make_world(
    seed: int = 1,
    days: int = 14,
    end: int = 0,
    cluster_id: str = "cluster-one",
    prime: int = 0,
    holes: tuple[tuple[int, int], ...] = (),
    overcommitted: bool = False,
) -> World:
    """A cluster over ``[end - days, end)``.

    Args:
        seed: prices, sizes and placement follow from it.
        end: Unix seconds, a UTC midnight in all but the shortest worlds.
        prime: with a prime, a world of 32nds that are multiples of it.
        overcommitted: more is requested than the nodes have, so that idle is negative.
    """
    rng = random.Random(seed)
    scale = _of_32nds(prime) if prime else _realistic(rng)
    start = end - days * DAY
    half = start + (days * 24 // 2) * HOUR
    nodes = _nodes(rng, scale, start, half, end)
    containers = _Workloads(rng, scale, nodes, start, end).add_all()
    if overcommitted:
        greedy = next(c for c in containers if c.controller == "idlebot")
        cores = sum(node.cores for node in nodes) * 2
        containers = tuple(replace(c, cpu_request=cores) if c is greedy else c for c in containers)
    web = [c.pod for c in containers if c.controller == "web" and c.start == start]
    sizes = scale.volume_gib
    volumes = (
        Volume("pvc-db", sizes[0], scale.volume_price, start, end, "data-db-0", "shop", ("db-0",)),
        Volume("pvc-old", sizes[1], scale.volume_price, start, end),
        Volume("pvc-late", sizes[2], scale.volume_price, half, end),
    )
    return World(
        cluster_id=cluster_id,
        start=start,
        end=end,
        nodes=nodes,
        containers=containers,
        volumes=volumes,
        balancers=(Balancer("shop", "web", "203.0.113.10", scale.balancer, tuple(web), start, end),),
        services=(Service("shop", "web", {"app": "web", "track": "stable"}),),
        egress=_egress(scale, containers, web, start, end),
        usd_per_gib=scale.egress_price,
        management_usd_per_hour=scale.management,
        discount=scale.discount,
        namespace_labels={name: {"env": "dev" if name in ("batch", "ml") else "prod"} for name in NAMESPACES},
        quotas={
            "shop": {"requests.cpu": 8.0, "requests.memory": 16.0 * GIB, "pods": 20.0},
            "api": {"requests.cpu": 4.0, "requests.memory": 8.0 * GIB},
        },
        exporter_restart=start + (end - start) * 2 // 3,
        holes=holes,
    )


def _egress(
    scale: _Scale, containers: tuple[Container, ...], web: list[str], start: int, end: int
) -> tuple[Egress, ...]:
    gateway = next(c.pod for c in containers if c.controller == "gateway")
    return tuple(
        Egress(namespace, pod, reach, scale.egress_gib * factor, start, end, reset_at=start + (end - start) // 3)
        for namespace, pod, reach, factor in (
            ("shop", web[0], "internet", 2.0),
            ("shop", web[1], "zone", 4.0),
            ("api", gateway, "internet", 1.0),
            ("api", gateway, "region", 3.0),
        )
    )


def marked(world: World, mark: str) -> World:
    """The same world with every name in it marked, so that a byte of it shows wherever it comes out."""

    def name(text: str) -> str:
        return f"{mark}-{text}" if text else ""

    nodes = {n.name: replace(n, name=name(n.name), provider_id=name(n.provider_id)) for n in world.nodes}
    containers = tuple(
        replace(
            c,
            namespace=name(c.namespace),
            pod=name(c.pod),
            node=nodes[c.node.name],
            labels={key: name(value) for key, value in c.labels.items()},
            services=tuple(map(name, c.services)),
        )
        for c in world.containers
    )
    return replace(
        world,
        cluster_id=name(world.cluster_id),
        nodes=tuple(nodes.values()),
        containers=containers,
        volumes=tuple(
            replace(
                v, name=name(v.name), claim=name(v.claim), namespace=name(v.namespace), pods=tuple(map(name, v.pods))
            )
            for v in world.volumes
        ),
        balancers=tuple(
            replace(b, namespace=name(b.namespace), service=name(b.service), pods=tuple(map(name, b.pods)))
            for b in world.balancers
        ),
        egress=tuple(replace(e, namespace=name(e.namespace), pod=name(e.pod)) for e in world.egress),
        services=tuple(
            replace(
                s, namespace=name(s.namespace), name=name(s.name), selector={k: name(v) for k, v in s.selector.items()}
            )
            for s in world.services
        ),
        namespace_labels={
            name(namespace): {key: name(value) for key, value in labels.items()}
            for namespace, labels in world.namespace_labels.items()
        },
        quotas={name(namespace): quota for namespace, quota in world.quotas.items()},
    )


def _nodes(rng: random.Random, scale: _Scale, start: int, half: int, end: int) -> tuple[Node, ...]:
    kinds = (
        ("m5.xlarge", 4.0, 16.0, 0.0, False, start),
        ("m5.2xlarge", 8.0, 32.0, 0.0, False, start),
        ("c5.xlarge", 4.0, 8.0, 0.0, True, half),
        ("g4dn.xlarge", 4.0, 16.0, 1.0, False, start),
    )
    spread = 0.0 if scale.exact else 0.05
    nodes = []
    for number, (instance_type, cores, ram, gpus, spot, since) in enumerate(kinds):
        level = (1.0 + rng.uniform(-spread, spread)) * (scale.spot_share if spot else 1.0)
        nodes.append(
            Node(
                name=f"node-{number}",
                provider_id=f"i-{number:04d}",
                instance_type=instance_type,
                zone=f"eu-west-1{'abc'[number % 3]}",
                cores=cores * (4 if scale.exact else 1),
                ram_gib=ram,
                gpus=gpus,
                usd_per_core_hour=scale.cpu_price * level,
                usd_per_gib_hour=scale.ram_price * level,
                usd_per_gpu_hour=scale.gpu_price if gpus else 0.0,
                spot=spot,
                start=since,
                end=end,
            )
        )
    return tuple(nodes)


class _Workloads:
    """Adds the containers of a world, namespace by namespace, in an order that a seed's random numbers follow."""

    def __init__(self, rng: random.Random, scale: _Scale, nodes: tuple[Node, ...], start: int, end: int) -> None:
        self._rng = rng
        self._scale = scale
        self._nodes = nodes
        self._small, self._large, self._spot, self._gpu = nodes
        self._start, self._end = start, end
        self.containers: list[Container] = []

    def add_all(self) -> tuple[Container, ...]:
        self._add_shop()
        self._add_api()
        self._add_kube_system()
        self._add_idle_and_ml()
        self._add_jobs()
        return tuple(self.containers)

    def _add(self, namespace: str, controller: str, kind: str, pod: str, node: Node, **more: object) -> None:
        name = controller.rstrip("0123456789-")
        values: dict[str, object] = {
            "name": name, "cpu_request": 0.5, "ram_request_gib": 1.0, "cpu_usage": 0.2, "ram_usage_gib": 0.6,
            "start": max(self._start, node.start), "end": self._end, "daily": 0.4, "labels": {"app": name},
        } | more  # fmt: skip
        container = Container(namespace, controller, kind, pod, node=node, **values)  # type: ignore[arg-type]
        self.containers.append(_exactly(container) if self._scale.exact else _sized(container, self._scale.cpu))

    def _suffix(self) -> str:
        return "".join(self._rng.choices("bcdfghjklmnpqrstvwxz2456789", k=5))

    def _add_shop(self) -> None:
        web_set = f"web-{self._suffix()}"
        web = {"app": "web", "team": "alpha", "app.kubernetes.io/part-of": "store"}
        for node, track in ((self._large, "stable"), (self._small, "stable"), (self._spot, "spot")):
            self._add(
                "shop", "web", "deployment", f"{web_set}-{self._suffix()}", node, labels=web | {"track": track},
                services=("web",) if track == "stable" else (),
            )  # fmt: skip
        db = {"app": "db", "team": "alpha"}
        self._add(
            "shop", "db", "statefulset", "db-0", self._small, labels=db,
            cpu_request=1.0, ram_request_gib=4.0, cpu_usage=0.33, ram_usage_gib=2.4,
        )  # fmt: skip
        self._add(
            "shop", "db", "statefulset", "db-0", self._small, labels=db, name="backup",
            cpu_request=0.1, ram_request_gib=0.25, cpu_usage=0.02, ram_usage_gib=0.1,
        )  # fmt: skip

    def _add_api(self) -> None:
        gateway_set = f"gateway-{self._suffix()}"
        gateway = {"app": "gateway", "team": "beta"}
        for node in (self._large, self._small):
            self._add("api", "gateway", "deployment", f"{gateway_set}-{self._suffix()}", node, labels=gateway)
        self._add(
            "api", "cache", "deployment", f"cache-{self._suffix()}-{self._suffix()}", self._large,
            cpu_request=0.0, ram_request_gib=0.0, cpu_usage=0.4, ram_usage_gib=1.5,
            labels={"app": "cache", "team": "beta"},
        )  # fmt: skip

    def _add_kube_system(self) -> None:
        for node in self._nodes:
            self._add(
                "kube-system", "kube-proxy", "daemonset", f"kube-proxy-{self._suffix()}", node,
                cpu_request=0.1, ram_request_gib=0.125, cpu_usage=0.03, ram_usage_gib=0.05,
            )  # fmt: skip

    def _add_idle_and_ml(self) -> None:
        self._add(
            "batch", "idlebot", "deployment", f"idlebot-{self._suffix()}-{self._suffix()}", self._large,
            cpu_request=1.0, ram_request_gib=2.0, cpu_usage=0.001, ram_usage_gib=0.02, daily=0.0,
        )  # fmt: skip
        self._add(
            "ml", "trainer", "statefulset", "trainer-0", self._gpu,
            cpu_request=2.0, ram_request_gib=8.0, cpu_usage=1.7, ram_usage_gib=7.0, gpus=1.0,
            labels={"app": "trainer", "team": "gamma"},
        )  # fmt: skip

    def _add_jobs(self) -> None:
        exact = self._scale.exact
        for number, since in enumerate(range(self._start + 2 * HOUR, self._end - 3 * HOUR, 12 * HOUR)):
            minutes = 60 * (1 + number % 2) if exact else 35 + (number * 11) % 56
            begun = since + (0 if exact else (number * 17) % 60 * 60)
            job = f"report-{begun // HOUR}"
            self._add(
                "batch", job, "job", f"{job}-{self._suffix()}", (self._small, self._large)[number % 2],
                cpu_usage=0.45, ram_usage_gib=0.9, daily=0.0, start=begun, end=begun + minutes * 60,
                labels={"app": "report", "team": "gamma"},
            )  # fmt: skip


def _sized(container: Container, cpu: float) -> Container:
    """Sizes that differ from seed to seed."""
    return replace(container, cpu_request=container.cpu_request * cpu, cpu_usage=container.cpu_usage * cpu)


def _exactly(container: Container) -> Container:
    """Whole, even cores and GiB, never used beyond the request, so that any share of them stays a 32nd."""
    return replace(container, cpu_request=2.0, ram_request_gib=2.0, cpu_usage=0.5, ram_usage_gib=1.0, daily=0.0)
