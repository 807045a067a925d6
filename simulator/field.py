"""Worlds with what clusters of the field have and a kind one lacks; each hardship is a switch of its own.

A hardship changes the world, never the way in which it is reckoned: pods that move, nodes that are replaced and prices
that change are containers and nodes that end and begin again. So the truth stays exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any

from simulator.world import DAY, HOUR, Balancer, Container, Node, Service, Volume, World, make_world

QUARTER = 15 * 60


def make_field_world(
    hardships: Iterable[str] | None = None,
    seed: int = 1,
    days: int = 2,
    end: int = 0,
    cluster_id: str = "cluster-one",
    prime: int = 0,
    holes: tuple[tuple[int, int], ...] = (),
    overcommitted: bool = False,
) -> World:
    """A world of ``make_world`` with hardships; all of them where none are named.

    Raises:
        KeyError: a hardship that there is not.
    """
    world = make_world(seed, days, end, cluster_id, prime, holes, overcommitted)
    chosen = HARDSHIPS if hardships is None else set(hardships)
    for name in sorted(chosen, key=lambda name: (name in CHANGES_OF_NODES, name)):
        world = HARDSHIPS[name](world, _Sizes(Random(f"{seed} {name}"), bool(prime)))
    return world


class _Sizes:
    """Lengths and sizes of what is added; in a world of 32nds every cost of an hour stays a whole 32nd."""

    def __init__(self, rng: Random, exact: bool) -> None:
        self.rng = rng
        self.exact = exact

    def brief(self) -> int:
        """Seconds of something short."""
        return QUARTER if self.exact else 60 * self.rng.randint(1, 20)

    def moment(self, hour: int) -> int:
        """A moment within an hour."""
        return hour if self.exact else hour + 60 * self.rng.randrange(60)

    def cores(self, long: bool = True) -> float:
        return (2.0 if long else 8.0) if self.exact else self.rng.choice((0.1, 0.25, 0.5))

    def gib(self, long: bool = True) -> float:
        return (2.0 if long else 8.0) if self.exact else self.rng.choice((0.125, 0.5, 1.0))


def _days(world: World) -> range:
    return range(world.start, world.end, DAY)


def _half(world: World) -> int:
    """A full hour in the middle that is no midnight."""
    return world.start + (world.end - world.start) // HOUR // 2 * HOUR + 3 * HOUR


def _noon(world: World) -> int:
    """Noon of the last day."""
    return world.end - DAY // 2


def _container(sizes: _Sizes, like: Container, start: int, end: int, long: bool = True, **changes: Any) -> Container:
    cores, gib = sizes.cores(long), sizes.gib(long)
    return replace(
        like, cpu_request=cores, cpu_usage=cores / 4, ram_request_gib=gib, ram_usage_gib=gib / 2, daily=0.0, gpus=0.0,
        start=start, end=end, **changes,
    )  # fmt: skip


def _node(world: World, name: str) -> Node:
    return next(node for node in world.nodes if node.name == name)


def _changed_node(world: World, node: Node, at: int, **changes: Any) -> World:
    """A node that is another from a moment on, with all that runs on it."""
    if not node.start < at < node.end:
        return world
    before, after = replace(node, end=at), replace(node, start=at, **changes)
    nodes = [part for one in world.nodes for part in ((before, after) if one is node else (one,))]
    containers = []
    for one in world.containers:
        if one.node is not node:
            containers.append(one)
            continue
        if one.start < at:
            containers.append(replace(one, node=before, end=min(one.end, at)))
        if one.end > at:
            containers.append(replace(one, node=after, start=max(one.start, at)))
    return replace(world, nodes=tuple(nodes), containers=tuple(containers))


def sidecars(world: World, sizes: _Sizes) -> World:
    """A mesh: a proxy beside each container, and one that prepares the pod and ends."""
    added = []
    for one in world.containers:
        if one.controller in ("web", "gateway"):
            added.append(_container(sizes, one, one.start, one.end, name="istio-proxy"))
            added.append(_container(sizes, one, one.start, one.start + sizes.brief(), long=False, name="istio-init"))
    return replace(world, containers=(*world.containers, *added))


def moving_pod(world: World, sizes: _Sizes) -> World:
    """A StatefulSet's pod that goes on under its name on another node."""
    at = _half(world)
    other = _node(world, "node-1")
    containers = []
    for one in world.containers:
        if one.pod != "db-0" or not one.start < at < one.end:
            containers.append(one)
            continue
        containers += [replace(one, end=at), replace(one, start=at, node=other)]
    return replace(world, containers=tuple(containers))


def twin_pods(world: World, sizes: _Sizes) -> World:
    """Pods of one name in two namespaces."""
    twin = next(one for one in world.containers if one.pod == "trainer-0")
    other = _container(sizes, twin, twin.start, twin.end, namespace="shop", services=())
    return replace(world, containers=(*world.containers, other))


def many_services(world: World, sizes: _Sizes) -> World:
    """One service selects several controllers, and pods stand behind two, one or none."""
    front = Service("shop", "front", {"team": "alpha"})
    containers = tuple(
        replace(one, services=tuple(sorted({*one.services, "front"})))
        if one.namespace == "shop" and one.labels.get("team") == "alpha"
        else one
        for one in world.containers
    )
    return replace(world, containers=containers, services=(*world.services, front))


def replaced_node(world: World, sizes: _Sizes) -> World:
    """Another machine under the name of one that went."""
    return _changed_node(world, _node(world, "node-1"), _half(world), provider_id="i-0001-again")


def price_change(world: World, sizes: _Sizes) -> World:
    """A price that doubles at noon."""
    node = _node(world, "node-0")
    dearer = {"usd_per_core_hour": node.usd_per_core_hour * 2, "usd_per_gib_hour": node.usd_per_gib_hour * 2}
    return _changed_node(world, node, _noon(world), **dearer)


def spot_nodes(world: World, sizes: _Sizes) -> World:
    """Nodes that live an hour, each with one pod."""
    like_node = _node(world, "node-2")
    like = next(one for one in world.containers if one.controller == "idlebot")
    nodes, containers = list(world.nodes), list(world.containers)
    for number, day in enumerate(_days(world)):
        for hour in (4, 15):
            start = sizes.moment(day + hour * HOUR)
            name = f"spot-{number}-{hour}"
            node = replace(like_node, name=name, provider_id=f"i-{name}", start=start, end=start + HOUR)
            nodes.append(node)
            containers.append(
                _container(
                    sizes, like, start, start + HOUR, node=node, controller="burst", name="burst",
                    pod=f"burst-7d9f-{number}{hour:02}", labels={"app": "burst"},
                )
            )  # fmt: skip
    return replace(world, nodes=tuple(nodes), containers=tuple(containers))


def autoscaling(world: World, sizes: _Sizes) -> World:
    """A node and two replicas more through each day's working hours."""
    like_node = _node(world, "node-0")
    like = next(one for one in world.containers if one.controller == "gateway")
    nodes, containers = list(world.nodes), list(world.containers)
    for number, day in enumerate(_days(world)):
        start, end = day + 9 * HOUR, day + 17 * HOUR
        node = replace(like_node, name=f"auto-{number}", provider_id=f"i-auto-{number}", start=start, end=end)
        nodes.append(node)
        containers += [
            _container(sizes, like, start, end, node=node, pod=f"{like.pod.rsplit('-', 1)[0]}-x{number}{letter}")
            for letter in "ab"
        ]
    return replace(world, nodes=tuple(nodes), containers=tuple(containers))


def short_jobs(world: World, sizes: _Sizes) -> World:
    """Jobs of minutes, also on GPUs, also over an hour's edge and one after another."""
    like = next(one for one in world.containers if one.kind == "job")
    gpu_node = _node(world, "node-3")
    containers = list(world.containers)
    for number, day in enumerate(_days(world)):
        for hour in (1, 7, 13, 19):
            start = day + hour * HOUR + (30 * 60 if sizes.exact else 52 * 60)
            for place in range(3):
                end = start + sizes.brief()
                job = f"short-{number}{hour:02}{place}"
                containers.append(
                    _container(
                        sizes, like, start, end, long=False, controller=job, pod=f"{job}-abcde", name="short",
                        labels={"app": "short", "team": "gamma"},
                    )
                )  # fmt: skip
                start = end
        start, job = sizes.moment(day + 10 * HOUR), f"infer-{number}"
        brief = _container(
            sizes, like, start, start + sizes.brief(), long=False, controller=job, pod=f"{job}-abcde", name="infer",
            node=gpu_node, labels={"app": "infer", "team": "gamma"},
        )  # fmt: skip
        containers.append(replace(brief, gpus=1.0))
    return replace(world, containers=tuple(containers))


def brief_balancers(world: World, sizes: _Sizes) -> World:
    """A balancer of some minutes each day, before the pods of a service that has one already."""
    known = world.balancers[0]
    selector = next(one.selector for one in world.services if one.name == known.service)
    balancers, services = list(world.balancers), list(world.services)
    for number, day in enumerate(_days(world)):
        start = sizes.moment(day + 11 * HOUR)
        name, ip = f"canary-{number}", f"203.0.113.{20 + number}"
        balancers.append(Balancer("shop", name, ip, known.usd_per_hour * 2, known.pods, start, start + sizes.brief()))
        services.append(Service("shop", name, selector))
    names = {one.name for one in services[len(world.services) :]}
    containers = tuple(
        replace(one, services=tuple(sorted({*one.services, *names}))) if known.service in one.services else one
        for one in world.containers
    )
    return replace(world, balancers=tuple(balancers), services=tuple(services), containers=containers)


def volumes_that_change_hands(world: World, sizes: _Sizes) -> World:
    """A volume of minutes each day, and one that two namespaces claim after each other."""
    known = world.volumes[0]
    at = _noon(world)
    api = tuple(dict.fromkeys(one.pod for one in world.containers if one.controller == "cache"))
    added = [
        replace(known, name="pvc-roaming", gib=4.0, end=at, claim="roaming", pods=("db-0",)),
        replace(known, name="pvc-roaming", gib=4.0, start=at, claim="roaming", namespace="api", pods=api),
    ]
    for number, day in enumerate(_days(world)):
        start = sizes.moment(day + 5 * HOUR)
        added.append(
            replace(
                known, name=f"pvc-scratch-{number}", gib=4.0, start=start, end=start + sizes.brief(), pods=(),
                claim=f"scratch-{number}",
            )
        )  # fmt: skip
    return replace(world, volumes=(*world.volumes, *added))


def shared_volume(world: World, sizes: _Sizes) -> World:
    """A volume that several pods mount."""
    pods = tuple(dict.fromkeys(one.pod for one in world.containers if one.controller == "gateway"))[:2]
    shared = replace(world.volumes[0], name="pvc-shared", gib=4.0, claim="shared", namespace="api", pods=pods)
    return replace(world, volumes=(*world.volumes, shared))


def boot_disks(world: World, sizes: _Sizes) -> World:
    """A disk of each node's own, which nobody claims and nobody can do without."""
    price = world.volumes[0].usd_per_gib_hour
    disks = tuple(Volume(node.name, 20.0, price, node.start, node.end) for node in world.nodes)
    return replace(world, boot_disks=disks)


def credits(world: World, sizes: _Sizes) -> World:
    """A bill that takes off more than a balancer costs."""
    first, *others = world.balancers
    return replace(world, balancers=(replace(first, credit_usd_per_hour=first.usd_per_hour * 2), *others))


def late_network(world: World, sizes: _Sizes) -> World:
    """Network counters that begin at noon of the last day."""
    noon = _noon(world)
    return replace(world, egress=tuple(replace(flow, start=noon, reset_at=0) for flow in world.egress))


def blind_hours(world: World, sizes: _Sizes) -> World:
    """Two hours in which the exporter wrote nodes and no containers."""
    since = world.end - 8 * HOUR
    return replace(world, blind=((since, since + 2 * HOUR),))


Hardship = Callable[[World, _Sizes], World]
HARDSHIPS: dict[str, Hardship] = {
    one.__name__: one
    for one in (
        autoscaling, blind_hours, boot_disks, brief_balancers, credits, late_network, many_services, moving_pod,
        price_change, replaced_node, shared_volume, short_jobs, sidecars, spot_nodes, twin_pods,
        volumes_that_change_hands,
    )
}  # fmt: skip
"""By name; they are applied in the order of their names."""
CHANGES_OF_NODES = (price_change.__name__, replaced_node.__name__)
"""These come last, so that whatever else is added to a node changes with it."""
